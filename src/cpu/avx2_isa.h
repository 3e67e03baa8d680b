// The vectors of 256 bits: unpacking, f32 expansion and the multiplication of AVX2, which the level avxvnni (avxvnni_read.cpp) replaces.
// Included by the units of these levels; everything has internal linkage.
//
// AVX2 has no non-saturating u8*s8 dot product, so the operands are scaled such that no int16 step can overflow:
//   scores  u8 = level + 128 times s8 query. Eight dims meet in one int16 lane. Per adjacent pair the positive and the negative
//           part of the query stay within 128, so a VPMADDUBSW is at most 255*128; over the eight dims Σ|q| <= 258, so the true sum is
//           at most 127*258 = 32766 once -128 Σq of the lane is added, and int16 arithmetic is modular in between.
//   values  u8 weight times s8 level. Four tokens meet in a lane; their weights sum to at most 255.4 before rounding, 257 after,
//           and 127*257 < 32768.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "cpu/attend_tiles.h"

namespace tightkv {

namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i spread(const void* p) { // four bytes into every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}

// ---- unpacking: eight vectors of codes -> eight vectors of table bytes, handed on four at a time

struct Table {
    __m256i low;  // index in the low bits of a nibble
    __m256i high; // 2 bit only: index in bits 2-3 of a nibble
};

Table make_table(int bits, int offset) {
    const Codebook&    book = codebook(bits);
    alignas(16) int8_t low[16], high[16];
    for (int i = 0; i < 16; i++) {
        low[i]  = static_cast<int8_t>(book.level[i % book.n] + offset);
        high[i] = static_cast<int8_t>(book.level[(i >> 2) % book.n] + offset);
    }
    return {_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(low))),
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(high)))};
}

// p: this half (32 bytes) of the first plane; planes are 64 bytes apart. use(i, v_i, v_i+1, v_i+2, v_i+3) for i = 0, 4.
template <int Bits, class Use> [[gnu::always_inline]] inline void unpack(const uint8_t* p, const Table& t, Use use) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const auto    lookup = [](__m256i table, __m256i index) { return _mm256_shuffle_epi8(table, index); };
    if constexpr (Bits == 4) {
        for (int i = 0; i < 8; i += 4) {
            const __m256i a = load(p + 32 * i), b = load(p + 32 * i + 64);
            use(i, lookup(t.low, _mm256_and_si256(a, nibble)), lookup(t.low, _mm256_and_si256(_mm256_srli_epi16(a, 4), nibble)),
                lookup(t.low, _mm256_and_si256(b, nibble)), lookup(t.low, _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble)));
        }
    } else if constexpr (Bits == 3) {
        // VPSHUFB takes bits 0-3 and zeroes on bit 7; after & 0x77 both nibbles index directly.
        const __m256i keep = _mm256_set1_epi8(0x77);
        const __m256i A = load(p), B = load(p + 64), C = load(p + 128);
        const __m256i a = _mm256_and_si256(A, keep), b = _mm256_and_si256(B, keep), c = _mm256_and_si256(C, keep);
        use(0, lookup(t.low, a), lookup(t.low, _mm256_srli_epi16(a, 4)), lookup(t.low, b), lookup(t.low, _mm256_srli_epi16(b, 4)));
        // the spare bits 3 and 7 of A, B, C are bits 0, 1, 2 of v6 and v7
        __m256i s = _mm256_srli_epi16(_mm256_xor_si256(A, a), 1);
        s         = _mm256_srli_epi16(_mm256_or_si256(s, _mm256_xor_si256(B, b)), 1);
        s         = _mm256_srli_epi16(_mm256_or_si256(s, _mm256_xor_si256(C, c)), 1);
        use(4, lookup(t.low, c), lookup(t.low, _mm256_srli_epi16(c, 4)), lookup(t.low, s), lookup(t.low, _mm256_srli_epi16(s, 4)));
    } else {
        for (int i = 0; i < 8; i += 4) {
            const __m256i x  = load(p + 16 * i);
            const __m256i lo = _mm256_and_si256(x, nibble), hi = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
            use(i, lookup(t.low, lo), lookup(t.high, lo), lookup(t.low, hi), lookup(t.high, hi));
        }
    }
}

struct Avx2 {
    static constexpr int kLanes = 8;
    typedef float        Floats __attribute__((vector_size(32)));
    typedef int32_t      Ints __attribute__((vector_size(32)));
    typedef float        FloatsInMemory __attribute__((vector_size(32), aligned(4), may_alias));

    static constexpr float kWeightLimit = 255.4f; // what the weights of an int16 lane may sum to

    static float fold_max(Floats v) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x        = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static float fold_sum(Floats v) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x        = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }

    struct QueryOperand {
        alignas(32) __m256i q[kMaxHeadDim / 4 * kMaxDecodeRows];      // [d/4][rows]: four query bytes in every lane
        alignas(32) __m256i minus[kMaxHeadDim / 16 * kMaxDecodeRows]; // [d/16][rows]: -128 Σq of each int16 lane
        float step[kMaxDecodeRows];                                   // query step times the codebook's unit
    };

    // The largest value that must map to 128 so that the rules above hold for real numbers: pairs within 128, eight within 258.
    static float query_bound(const float* q, int d) {
        float bound = 0;
        for (int k = 0; k < d; k += 16)
            for (int h = 0; h < 4; h += 2) {
                float sum = 0;
                for (int v = 0; v < 16; v += 4) {
                    const float x = q[k + v + h], y = q[k + v + h + 1];
                    const float pos = (x > 0 ? x : 0) + (y > 0 ? y : 0), neg = (x < 0 ? -x : 0) + (y < 0 ? -y : 0);
                    sum += pos + neg;
                    bound = std::fmax(bound, std::fmax(pos, neg));
                }
                bound = std::fmax(bound, sum * (128.0f / 258.0f));
            }
        return bound;
    }
    static bool query_fits(const int8_t* q, int d) { // the same rules after rounding
        for (int k = 0; k < d; k += 16)
            for (int h = 0; h < 4; h += 2) {
                int sum = 0;
                for (int v = 0; v < 16; v += 4) {
                    const int x = q[k + v + h], y = q[k + v + h + 1];
                    const int pos = (x > 0 ? x : 0) + (y > 0 ? y : 0), neg = (x < 0 ? -x : 0) + (y < 0 ? -y : 0);
                    if (pos > 128 || neg > 128) return false;
                    sum += pos + neg;
                }
                if (sum > 258) return false;
            }
        return true;
    }
    // Returns the step: q ~ step * q8.
    static float quantize_query(const float* q, int d, int8_t* q8) {
        const float bound = all_finite(q, d) ? query_bound(q, d) : 0.0f;
        std::fill_n(q8, d, int8_t{0});
        if (!(bound > 1e-30f) || bound > 3e38f) return 0; // as good as zero; NaN and Inf: poison_rows()
        for (float limit = 128.0f;; limit -= 0.125f) {    // rounding can exceed a rule by a unit or two
            const float inv = limit / bound;
            for (int i = 0; i < d; i++) {
                const float x = std::nearbyint(q[i] * inv);
                q8[i]         = static_cast<int8_t>(x > 127.0f ? 127.0f : x > -127.0f ? x : -127.0f);
            }
            if (query_fits(q8, d)) return bound / limit;
        }
    }
    static void prepare_query(const float* q, int d, int rows, float unit, QueryOperand& out) {
        int8_t q8[kMaxHeadDim];
        for (int r = 0; r < rows; r++) {
            out.step[r] = quantize_query(q + static_cast<size_t>(r) * d, d, q8) * unit;
            for (int i = 0; i < d / 4; i++) out.q[i * rows + r] = spread(q8 + 4 * i);
            for (int k = 0; k < d / 16; k++) {
                int16_t lane[2];
                for (int h = 0; h < 2; h++) {
                    int sum = 0;
                    for (int v = 0; v < 16; v += 4) sum += q8[16 * k + v + 2 * h] + q8[16 * k + v + 2 * h + 1];
                    lane[h] = static_cast<int16_t>(-128 * sum);
                }
                out.minus[k * rows + r] = spread(lane);
            }
        }
    }

    template <int Bits, int R> static void scores_of(const uint8_t* tile, int d, const QueryOperand& op, float* out) {
        static const Table table  = make_table(Bits, 128);
        const Table        t      = table;
        const __m256i      ones   = _mm256_set1_epi16(1);
        const int          groups = d / 32;
        for (int block = 0; block < 8; block++) { // eight tokens: half of a 16-token vector
            const uint8_t* p = tile + static_cast<size_t>(block / 2) * groups * Bits * 64 + (block % 2) * 32;
            __m256i        acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_si256();
            for (int g = 0; g < groups; g++, p += Bits * 64) {
                const __m256i* q     = op.q + g * 8 * R;
                const __m256i* minus = op.minus + g * 2 * R;
                unpack<Bits>(
                    p, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        for (int r = 0; r < R; r++) {
                            const __m256i ab =
                                _mm256_add_epi16(_mm256_maddubs_epi16(a, q[i * R + r]), _mm256_maddubs_epi16(b, q[(i + 1) * R + r]));
                            const __m256i ce =
                                _mm256_add_epi16(_mm256_maddubs_epi16(c, q[(i + 2) * R + r]), _mm256_maddubs_epi16(e, q[(i + 3) * R + r]));
                            const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(ab, minus[i / 4 * R + r]), ce);
                            acc[r]            = _mm256_add_epi32(acc[r], _mm256_madd_epi16(sum, ones));
                        }
                    });
            }
            for (int r = 0; r < R; r++)
                _mm256_storeu_ps(out + r * kTileTokens + block * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r]), _mm256_set1_ps(op.step[r])));
        }
    }

    // `bound` becomes `limit`. Returns the step: w ~ step * w8.
    static float weights_to_bytes(const Floats* w, float bound, float limit, uint8_t* w8) {
        // Below 1e-30 a tile adds nothing that f32 could hold beside the rest; the division would overflow.
        const __m256  inv   = _mm256_set1_ps(bound > 1e-30f ? limit / bound : 0.0f);
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for (int i = 0; i < 8; i += 4) {
            __m256i n[4];
            for (int k = 0; k < 4; k++) n[k] = _mm256_cvtps_epi32(_mm256_mul_ps(w[i + k], inv));
            const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(w8 + 8 * i), _mm256_permutevar8x32_epi32(bytes, order));
        }
        return bound / limit;
    }
    // w >= 0, 64 tokens.
    static float quantize_weights(const Floats* w, uint8_t* w8) {
        // Sums of the tokens {0,1,4,5} and {2,3,6,7} of every eight, the int16 lanes: pairs of two vectors at a time, then their halves.
        __m256 top = _mm256_setzero_ps();
        for (int i = 0; i < 8; i += 4) {
            const __m256 a = _mm256_hadd_ps(w[i], w[i + 1]), b = _mm256_hadd_ps(w[i + 2], w[i + 3]);
            top = _mm256_max_ps(top, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
        }
        return weights_to_bytes(w, fold_max(top), kWeightLimit, w8);
    }

    template <int Bits, int R> static void weigh_of(const uint8_t* tile, int d, const uint8_t* w8, const float* step, float* o) {
        static const Table table = make_table(Bits, 0);
        const Table        t     = table;
        const __m256i      ones  = _mm256_set1_epi16(1);
        for (int half = 0; half < d / 8; half++) { // eight dims
            const uint8_t* p = tile + static_cast<size_t>(half / 2) * 2 * Bits * 64 + (half % 2) * 32;
            __m256i        acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_si256();
            for (int s = 0; s < 2; s++) { // 32 tokens
                const uint8_t* w = w8 + 32 * s;
                unpack<Bits>(
                    p + s * Bits * 64, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        for (int r = 0; r < R; r++) {
                            const uint8_t* x = w + r * kTileTokens + 4 * i;
                            const __m256i ab = _mm256_add_epi16(_mm256_maddubs_epi16(spread(x), a), _mm256_maddubs_epi16(spread(x + 4), b));
                            const __m256i ce =
                                _mm256_add_epi16(_mm256_maddubs_epi16(spread(x + 8), c), _mm256_maddubs_epi16(spread(x + 12), e));
                            acc[r] = _mm256_add_epi32(acc[r], _mm256_add_epi32(_mm256_madd_epi16(ab, ones), _mm256_madd_epi16(ce, ones)));
                        }
                    });
            }
            for (int r = 0; r < R; r++) {
                float* at = o + static_cast<size_t>(r) * d + half * 8;
                _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r]), _mm256_set1_ps(step[r]), _mm256_loadu_ps(at)));
            }
        }
    }

    // ---- many rows: four bytes of a lane meet in two int16 lanes, two vectors in each

    static constexpr int kBlock   = 4;                 // tokens or dims of a register block
    static constexpr int kOffsetK = 128, kOffsetV = 0; // u8 * s8

    static bool   any(Ints mask) { return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) != 0; }
    static Ints   dword(const uint8_t* p, int j) { return reinterpret_cast<Ints>(spread(p + 4 * j)); }
    static Ints   to_ints(Floats v) { return reinterpret_cast<Ints>(_mm256_cvtps_epi32(v)); }
    static Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v)); }
    static Ints   dot2(Ints acc, Ints u0, Ints s0, Ints u1, Ints s1) {
          const auto    i   = [](Ints v) { return reinterpret_cast<__m256i>(v); };
          const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(i(u0), i(s0)), _mm256_maddubs_epi16(i(u1), i(s1)));
          return acc + reinterpret_cast<Ints>(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
    static __m256i quads() { // bytes a0-3 b0-3 c0-3 d0-3 of a half -> a0 b0 c0 d0 …
        return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    }
    static Ints pack_signed(Ints a, Ints b, Ints c, Ints d) {
        const auto i = [](Ints v) { return reinterpret_cast<__m256i>(v); };
        return reinterpret_cast<Ints>(
            _mm256_shuffle_epi8(_mm256_packs_epi16(_mm256_packs_epi32(i(a), i(b)), _mm256_packs_epi32(i(c), i(d))), quads()));
    }
    static Ints pack_unsigned(Ints a, Ints b, Ints c, Ints d) {
        const auto i = [](Ints v) { return reinterpret_cast<__m256i>(v); };
        return reinterpret_cast<Ints>(
            _mm256_shuffle_epi8(_mm256_packus_epi16(_mm256_packs_epi32(i(a), i(b)), _mm256_packs_epi32(i(c), i(d))), quads()));
    }
    // The four dims of an int16 lane: positive and negative parts of at most 126 each, 128 after rounding, so 255*128 at most.
    static Floats query_factor(const float* q, int d) {
        Floats bound{};
        for (int i = 0; i < d; i += 8)
            for (int h = 0; h < 4; h += 2) {
                Floats positive{}, sum{};
                for (const int k : {i + h, i + h + 1, i + h + 4, i + h + 5}) {
                    const Floats x = _mm256_loadu_ps(q + static_cast<size_t>(k) * kLanes);
                    positive += _mm256_max_ps(x, _mm256_setzero_ps());
                    sum += x;
                }
                bound = _mm256_max_ps(bound, _mm256_max_ps(positive, positive - sum));
            }
        return bound > 1e-30f ? 126.0f / bound : Floats{};
    }
    static Floats weight_bound(const Floats* w) { // sums of the tokens of an int16 lane
        return _mm256_max_ps((w[0] + w[1]) + (w[4] + w[5]), (w[2] + w[3]) + (w[6] + w[7]));
    }
    template <int Bits> static void expand_bytes(const uint8_t* p, int n, int offset, uint8_t* out) {
        const Table t = make_table(Bits, offset);
        for (int g = 0; g < n; g++, p += Bits * 64, out += 512)
            for (int half = 0; half < 64; half += 32)
                unpack<Bits>(
                    p + half, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        const __m256i v[4] = {a, b, c, e};
                        for (int k = 0; k < 4; k++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 * (i + k) + half), v[k]);
                    });
    }
    static void transpose(Floats* r) {
        __m256 t[8], u[8];
        for (int i = 0; i < 8; i += 2) t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        for (int i = 0; i < 8; i += 4)
            for (int k = 0; k < 2; k++) {
                u[i + 2 * k]     = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
                u[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
            }
        for (int i = 0; i < 4; i++) {
            r[i]     = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
            r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
        }
    }

    // ---- expansion to f32

    // Bytes of four neighbours (dims of K, tokens of V) -> one f32 vector each.
    static __m256 byte_lane(__m256i x, int b) {
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(x, _mm_cvtsi32_si128(24 - 8 * b)), 24));
    }

    template <int Bits, class Use> [[gnu::always_inline]] static void unpack_levels(const uint8_t* p, const Table& t, Use use) {
        if constexpr (Bits == 8) {
            for (int i = 0; i < 8; i += 4) use(i, load(p + 64 * i), load(p + 64 * i + 64), load(p + 64 * i + 128), load(p + 64 * i + 192));
        } else {
            unpack<Bits>(p, t, use);
        }
    }
    template <int Bits> static void expand_k(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table       t = Bits == 8 ? Table{} : make_table(Bits == 8 ? 4 : Bits, 0);
        alignas(32) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const __m256 unit = _mm256_set1_ps(unit_of(f));
        for (int block = 0; block < 8; block++) {
            const uint8_t* p = tile + static_cast<size_t>(block / 2) * (d / 32) * Bits * 64 + (block % 2) * 32;
            const __m256   s = _mm256_mul_ps(_mm256_load_ps(scale + 8 * block), unit);
            for (int g = 0; g < d / 32; g++, p += Bits * 64)
                unpack_levels<Bits>(
                    p, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        const __m256i v[4] = {a, b, c, e};
                        for (int x = 0; x < 16; x++)
                            _mm256_storeu_ps(out + static_cast<size_t>(32 * g + 4 * i + x) * kTileTokens + 8 * block,
                                             _mm256_mul_ps(byte_lane(v[x / 4], x % 4), s));
                    });
        }
    }
    template <int Bits> static void expand_v(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table       t = Bits == 8 ? Table{} : make_table(Bits == 8 ? 4 : Bits, 0);
        alignas(32) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const float unit = unit_of(f);
        for (int i = 0; i < kTileTokens; i++) scale[i] *= unit;
        for (int half = 0; half < d / 8; half++) {
            const uint8_t* p = tile + static_cast<size_t>(half / 2) * 2 * Bits * 64 + (half % 2) * 32;
            for (int s = 0; s < 2; s++)
                unpack_levels<Bits>(
                    p + s * Bits * 64, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        const __m256i v[4] = {a, b, c, e};
                        for (int x = 0; x < 16; x++) {
                            const int token = 32 * s + 4 * i + x;
                            _mm256_storeu_ps(out + static_cast<size_t>(token) * d + 8 * half,
                                             _mm256_mul_ps(byte_lane(v[x / 4], x % 4), _mm256_set1_ps(scale[token])));
                        }
                    });
        }
    }
    static void expand_f16(Operand op, const uint8_t* tile, int d, float* out) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(tile);
        for (int t = 0; t < kTileTokens; t++, row += d)
            for (int i = 0; i < d; i += 8) {
                const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)));
                if (op == Operand::V) {
                    _mm256_storeu_ps(out + static_cast<size_t>(t) * d + i, x);
                } else {
                    alignas(32) float lane[8];
                    _mm256_store_ps(lane, x);
                    for (int k = 0; k < 8; k++) out[static_cast<size_t>(i + k) * kTileTokens + t] = lane[k];
                }
            }
    }

    // ---- what Attention<Isa> calls

    static Floats half_vector(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static void   load_halves(const uint16_t* p, float* out) {
          for (int i = 0; i < kTileTokens; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
    }
    static uint64_t equal_bits(const uint16_t* p, uint16_t half) {
        const __m256i value = _mm256_set1_epi16(static_cast<int16_t>(half));
        uint64_t      bits  = 0;
        for (int i = 0; i < kTileTokens; i += 32) {
            const __m256i a = _mm256_cmpeq_epi16(load(p + i), value), b = _mm256_cmpeq_epi16(load(p + i + 16), value);
            const __m256i ab = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
            bits |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(ab))) << i;
        }
        return bits;
    }
};

} // namespace
} // namespace tightkv
