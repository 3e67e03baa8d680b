// The vectors of 256 bits beside unpacking (avx2_unpack.h): f32 expansion and the multiplication of AVX2, which the levels with
// VPDPBUSD (vnni256.h) replace. Included by the units of these levels; everything has internal linkage.
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
#include "cpu/avx2_unpack.h"

namespace tightkv {

namespace {

inline __m256i spread(const void* p) { // four bytes into every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
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

    static Floats from_bytes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }

    static int sum_bytes(const uint8_t* p) {
        const auto    sums = [&](int i) { return _mm256_sad_epu8(load(p + i), _mm256_setzero_si256()); };
        const __m256i sum  = _mm256_add_epi64(sums(0), sums(32));
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        return _mm_cvtsi128_si32(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half)));
    }

    // The largest value that must map to 128 so that the rules above hold for real numbers: pairs within 128, eight within 258.
    static float query_bound(const float* q, int d) {
        const __m256 zero = _mm256_setzero_ps();
        __m256       pair = zero, eight = zero;
        for (int k = 0; k < d; k += 16) {
            const __m256 x = _mm256_loadu_ps(q + k), y = _mm256_loadu_ps(q + k + 8);
            // Of pairs: x01 x23 y01 y23, then x45 x67 y45 y67; every other one belongs to the same int16 lane.
            const __m256 positive = _mm256_hadd_ps(_mm256_max_ps(x, zero), _mm256_max_ps(y, zero));
            const __m256 negative =
                _mm256_hadd_ps(_mm256_max_ps(_mm256_sub_ps(zero, x), zero), _mm256_max_ps(_mm256_sub_ps(zero, y), zero));
            const __m256 all    = _mm256_add_ps(positive, negative);
            const __m256 halves = _mm256_add_ps(all, _mm256_permute2f128_ps(all, all, 1));
            pair                = _mm256_max_ps(pair, _mm256_max_ps(positive, negative));
            eight               = _mm256_max_ps(eight, _mm256_add_ps(halves, _mm256_permute_ps(halves, 0x4e)));
        }
        return fold_max(_mm256_max_ps(pair, _mm256_mul_ps(eight, _mm256_set1_ps(128.0f / 258.0f))));
    }
    // Pairs of 32 dims -> of each int16 lane the sum of its eight dims, in the low and the high half of every dword; dims 0-15, dims 16-31.
    static __m256i lane_sums(__m256i pairs) {
        pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
        return _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    }
    static bool query_fits(const int8_t* q, int d) { // the same rules after rounding
        const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1);
        __m256i       bad = zero;
        for (int k = 0; k < d; k += 32) {
            const __m256i x        = load(q + k);
            const __m256i positive = _mm256_maddubs_epi16(_mm256_max_epi8(x, zero), ones);
            const __m256i negative = _mm256_maddubs_epi16(_mm256_max_epi8(_mm256_sub_epi8(zero, x), zero), ones); // -128 does not occur
            const __m256i sum      = lane_sums(_mm256_add_epi16(positive, negative));
            bad                    = _mm256_or_si256(bad, _mm256_cmpgt_epi16(_mm256_max_epi16(positive, negative), _mm256_set1_epi16(128)));
            bad                    = _mm256_or_si256(bad, _mm256_cmpgt_epi16(sum, _mm256_set1_epi16(258)));
        }
        return _mm256_testz_si256(bad, bad) != 0;
    }
    // q * inv, rounded and within 127.
    static void round_query(const float* q, int d, float inv, int8_t* q8) {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for (int k = 0; k < d; k += 32) {
            __m256i n[4];
            for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(q + k + 8 * i), _mm256_set1_ps(inv)));
            const __m256i bytes  = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
            const __m256i inside = _mm256_max_epi8(_mm256_permutevar8x32_epi32(bytes, order), _mm256_set1_epi8(-127));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(q8 + k), inside);
        }
    }
    // Returns the step: q ~ step * q8.
    static float quantize_query(const float* q, int d, int8_t* q8) {
        const float bound = all_finite(q, d) ? query_bound(q, d) : 0.0f;
        std::fill_n(q8, d, int8_t{0});
        if (!(bound > 1e-30f) || bound > 3e38f) return 0; // as good as zero; NaN and Inf: poison_rows()
        for (float limit = 128.0f;; limit -= 0.125f) {    // rounding can exceed a rule by a unit or two
            round_query(q, d, limit / bound, q8);
            if (query_fits(q8, d)) return bound / limit;
        }
    }
    static void prepare_query(const float* q, int d, int rows, float unit, QueryOperand& out) {
        int8_t q8[kMaxHeadDim];
        for (int r = 0; r < rows; r++) {
            out.step[r] = quantize_query(q + static_cast<size_t>(r) * d, d, q8) * unit;
            for (int i = 0; i < d / 4; i++) out.q[i * rows + r] = spread(q8 + 4 * i);
            for (int k = 0; k < d / 16; k += 2) {
                const __m256i sum             = lane_sums(_mm256_maddubs_epi16(_mm256_set1_epi8(1), load(q8 + 16 * k)));
                const __m256i minus           = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sum, 7)); // modulo 2^16
                out.minus[k * rows + r]       = _mm256_permute2x128_si256(minus, minus, 0x00);
                out.minus[(k + 1) * rows + r] = _mm256_permute2x128_si256(minus, minus, 0x11);
            }
        }
    }

    template <class C, int R> static void scores_of(const uint8_t* tile, int d, const QueryOperand& op, float* out) {
        static const Table<C> table = make_table<C>(Operand::K, 128);
        const Table<C>        t     = table;
        const __m256i         ones  = _mm256_set1_epi16(1);
        for (int block = 0; block < 8; block++) { // eight tokens
            __m256i acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_si256();
            walk_k<C>(
                tile, block, d / 32, t, [&](int g, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                    const __m256i* q     = op.q + (8 * g + i) * R;
                    const __m256i* minus = op.minus + (2 * g + i / 4) * R;
                    for (int r = 0; r < R; r++) {
                        const __m256i ab  = _mm256_add_epi16(_mm256_maddubs_epi16(a, q[r]), _mm256_maddubs_epi16(b, q[R + r]));
                        const __m256i ce  = _mm256_add_epi16(_mm256_maddubs_epi16(c, q[2 * R + r]), _mm256_maddubs_epi16(e, q[3 * R + r]));
                        const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(ab, minus[r]), ce);
                        acc[r]            = _mm256_add_epi32(acc[r], _mm256_madd_epi16(sum, ones));
                    }
                });
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

    template <class C, int R> static void weigh_of(const uint8_t* tile, int d, const uint8_t* w8, const float* step, float* o) {
        static const Table<C> table = make_table<C>(Operand::V, 0);
        const Table<C>        t     = table;
        const __m256i         ones  = _mm256_set1_epi16(1);
        const auto            half  = [&](int g, int h) __attribute__((always_inline)) { // eight dims
            __m256i acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_si256();
            walk_v<C>(
                tile, g, d / 16, h, t, [&](int s, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                                for (int r = 0; r < R; r++) {
                                    const uint8_t* x = w8 + r * kTileTokens + 32 * s + 4 * i;
                                    const __m256i  ab = _mm256_add_epi16(_mm256_maddubs_epi16(spread(x), a), _mm256_maddubs_epi16(spread(x + 4), b));
                                    const __m256i  ce =
                                        _mm256_add_epi16(_mm256_maddubs_epi16(spread(x + 8), c), _mm256_maddubs_epi16(spread(x + 12), e));
                                    acc[r] = _mm256_add_epi32(acc[r], _mm256_add_epi32(_mm256_madd_epi16(ab, ones), _mm256_madd_epi16(ce, ones)));
                    }
                });
            for (int r = 0; r < R; r++) {
                            float* at = o + static_cast<size_t>(r) * d + 16 * g + 8 * h;
                            _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r]), _mm256_set1_ps(step[r]), _mm256_loadu_ps(at)));
            }
        };
        each_half<C>(d / 16, half);
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
    template <class C> static void expand_bytes(Operand op, const uint8_t* tile, int d, int offset, uint8_t* out) {
        const Table<C> t   = make_table<C>(op, offset);
        const auto     put = [](uint8_t* at, __m256i a, __m256i b, __m256i c, __m256i e) {
            const __m256i v[4] = {a, b, c, e};
            for (int k = 0; k < 4; k++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + 64 * k), v[k]);
        };
        if (op == Operand::K) {
            for (int block = 0; block < 8; block++) {
                uint8_t* const at = out + static_cast<size_t>(block / 2) * d * 16 + block % 2 * 32;
                walk_k<C>(
                    tile, block, d / 32, t, [&](int g, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        put(at + 512 * g + 64 * i, a, b, c, e);
                    });
            }
        } else {
            each_half<C>(
                d / 16, [&](int g, int h) __attribute__((always_inline)) {
                    uint8_t* const at = out + static_cast<size_t>(g) * 1024 + 32 * h;
                    walk_v<C>(
                        tile, g, d / 16, h,
                        t, [&](int s, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                            put(at + 512 * s + 64 * i, a, b, c, e);
                        });
                });
        }
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

    template <class C> static void expand_k(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C>    t = make_table<C>(Operand::K, 0);
        alignas(32) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const __m256 unit = _mm256_set1_ps(unit_of(f));
        for (int block = 0; block < 8; block++) {
            const __m256 s = _mm256_mul_ps(_mm256_load_ps(scale + 8 * block), unit);
            walk_k<C>(
                tile, block, d / 32, t, [&](int g, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                    const __m256i v[4] = {a, b, c, e};
                    for (int x = 0; x < 16; x++)
                        _mm256_storeu_ps(out + static_cast<size_t>(32 * g + 4 * i + x) * kTileTokens + 8 * block,
                                         _mm256_mul_ps(byte_lane(v[x / 4], x % 4), s));
                });
        }
    }
    template <class C> static void expand_v(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C>    t = make_table<C>(Operand::V, 0);
        alignas(32) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const float unit = unit_of(f);
        for (int i = 0; i < kTileTokens; i++) scale[i] *= unit;
        each_half<C>(
            d / 16, [&](int g, int h) __attribute__((always_inline)) {
                walk_v<C>(
                    tile, g, d / 16, h, t, [&](int s, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                        const __m256i v[4] = {a, b, c, e};
                        for (int x = 0; x < 16; x++) {
                            const int token = 32 * s + 4 * i + x;
                            _mm256_storeu_ps(out + static_cast<size_t>(token) * d + 16 * g + 8 * h,
                                             _mm256_mul_ps(byte_lane(v[x / 4], x % 4), _mm256_set1_ps(scale[token])));
                        }
                    });
            });
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
