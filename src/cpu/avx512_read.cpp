// ISA level "avx512" (VNNI + VBMI), read path: VPERMB looks the codes up, VPDPBUSD multiplies and sums, nothing saturates:
//   scores  u8 = level + 128 times s8 query; -128 Σq is the accumulators' initial value
//   values  u8 weight times s8 level
#include <immintrin.h>

#include "cpu/attend_tiles.h"
#include "cpu/avx512_unpack.h"
#include "cpu/isa_entries.h"

namespace tightkv {

namespace {

inline __m512i spread(const void* p) { // four bytes into every lane
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

struct Avx512 {
    static constexpr int kLanes = 16;
    typedef float        Floats __attribute__((vector_size(64)));
    typedef int32_t      Ints __attribute__((vector_size(64)));
    typedef float        FloatsInMemory __attribute__((vector_size(64), aligned(4), may_alias));

    static float fold_max(Floats v) { return _mm512_reduce_max_ps(v); }
    static float fold_sum(Floats v) { return _mm512_reduce_add_ps(v); }

    using QueryOperand                   = ByteQueries;
    static constexpr auto prepare_query  = prepare_byte_queries;
    static constexpr auto quantize_query = quantize_by_largest;

    // Two parts of a tile side by side take every query (weight) from memory once for both. One row alone is limited by reading the codes,
    // best in the order of memory; from five rows on the registers do not suffice (docs/cpu.md).
    template <int R> static constexpr int kPartsOf = R >= 2 && R <= 4 ? 2 : 1;

    template <class C, int R> static void scores_of(const uint8_t* tile, int d, const QueryOperand& op, float* out) {
        static const Table<C> table  = make_table<C>(Operand::K, 128);
        const Table<C>        t      = table;
        constexpr int         kParts = kPartsOf<R>; // times 16 tokens
        const size_t          size   = static_cast<size_t>(d / 32) * C::bits * 64;
        for (int block = 0; block < 4; block += kParts) {
            __m512i acc[kParts][R];
            for (int part = 0; part < kParts; part++)
                for (int r = 0; r < R; r++) acc[part][r] = _mm512_set1_epi32(op.minus[r]);
            walk_k_parts<C, kParts>(
                tile + block * size, size, d / 32, t, [&](int g, const Unpacked<kParts>& v) __attribute__((always_inline)) {
                    for (int i = 0; i < 8; i++)
                        for (int r = 0; r < R; r++) {
                            const __m512i q = spread(op.q[r] + 32 * g + 4 * i);
                            for (int part = 0; part < kParts; part++) acc[part][r] = _mm512_dpbusd_epi32(acc[part][r], v[part][i], q);
                        }
                });
            for (int part = 0; part < kParts; part++)
                for (int r = 0; r < R; r++)
                    _mm512_storeu_ps(out + r * kTileTokens + 16 * (block + part),
                                     _mm512_mul_ps(_mm512_cvtepi32_ps(acc[part][r]), _mm512_set1_ps(op.step[r])));
        }
    }

    static Floats from_bytes(const uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static int sum_bytes(const uint8_t* p) {
        return static_cast<int>(_mm512_reduce_add_epi64(_mm512_sad_epu8(load(p), _mm512_setzero_si512())));
    }
    // w >= 0, 64 tokens. Returns the step: w ~ step * w8.
    static float quantize_weights(const Floats* w, uint8_t* w8) {
        const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(w[0], w[1]), _mm512_max_ps(w[2], w[3])));
        // Below 1e-30 a tile adds nothing that f32 could hold beside the rest; the division would overflow.
        const __m512 inv = _mm512_set1_ps(top > 1e-30f ? 255.0f / top : 0.0f);
        for (int i = 0; i < 4; i++)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(w8 + 16 * i), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(w[i], inv))));
        return top / 255.0f;
    }

    template <class C, int R> static void weigh_of(const uint8_t* tile, int d, const uint8_t* w8, const float* step, float* o) {
        static const Table<C> table  = make_table<C>(Operand::V, 0);
        const Table<C>        t      = table;
        constexpr int         kParts = kPartsOf<R>; // times 16 dims
        for (int n = 0; n < d / 16; n += kParts) {
            const int g = nth_part<C>(n, d / 16, 1);
            __m512i   acc[kParts][R];
            for (int part = 0; part < kParts; part++)
                for (int r = 0; r < R; r++) acc[part][r] = _mm512_setzero_si512();
            walk_v_parts<C, kParts>(
                tile, g, d / 16, t, [&](int s, const Unpacked<kParts>& v) __attribute__((always_inline)) {
                    for (int i = 0; i < 8; i++)
                        for (int r = 0; r < R; r++) {
                            const __m512i w = spread(w8 + r * kTileTokens + 32 * s + 4 * i);
                            for (int part = 0; part < kParts; part++) acc[part][r] = _mm512_dpbusd_epi32(acc[part][r], w, v[part][i]);
                        }
                });
            for (int part = 0; part < kParts; part++)
                for (int r = 0; r < R; r++) {
                    float* at = o + static_cast<size_t>(r) * d + 16 * (g + part);
                    _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[part][r]), _mm512_set1_ps(step[r]), _mm512_loadu_ps(at)));
                }
        }
    }

    // ---- many rows

    static constexpr int   kBlock   = 8;                 // tokens or dims of a register block
    static constexpr int   kOffsetK = 128, kOffsetV = 0; // u8 * s8
    static constexpr float kWeightLimit = 255.0f;

    static bool   any(Ints mask) { return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0; }
    static Ints   dword(const uint8_t* p, int j) { return reinterpret_cast<Ints>(spread(p + 4 * j)); }
    static Ints   to_ints(Floats v) { return reinterpret_cast<Ints>(_mm512_cvtps_epi32(v)); }
    static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v)); }
    static Ints   dot2(Ints acc, Ints u0, Ints s0, Ints u1, Ints s1) {
          const auto i = [](Ints v) { return reinterpret_cast<__m512i>(v); };
          return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(i(acc), i(u0), i(s0)), i(u1), i(s1)));
    }
    static __m512i quads() { // bytes a0-3 b0-3 c0-3 d0-3 of a quarter -> a0 b0 c0 d0 …
        return _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    }
    static Ints pack_signed(Ints a, Ints b, Ints c, Ints d) {
        const auto i = [](Ints v) { return reinterpret_cast<__m512i>(v); };
        return reinterpret_cast<Ints>(
            _mm512_shuffle_epi8(_mm512_packs_epi16(_mm512_packs_epi32(i(a), i(b)), _mm512_packs_epi32(i(c), i(d))), quads()));
    }
    static Ints pack_unsigned(Ints a, Ints b, Ints c, Ints d) {
        const auto i = [](Ints v) { return reinterpret_cast<__m512i>(v); };
        return reinterpret_cast<Ints>(
            _mm512_shuffle_epi8(_mm512_packus_epi16(_mm512_packs_epi32(i(a), i(b)), _mm512_packs_epi32(i(c), i(d))), quads()));
    }
    static Floats query_factor(const float* q, int d) {
        __m512 top = _mm512_setzero_ps();
        for (int i = 0; i < d; i++) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(q + static_cast<size_t>(i) * kLanes)));
        return Floats(top) > 1e-30f ? 127.0f / Floats(top) : Floats{};
    }
    static Floats weight_bound(const Floats* w) {
        Floats top = w[0];
        for (int k = 1; k < 8; k++) top = _mm512_max_ps(top, w[k]);
        return top;
    }
    template <class C> static void expand_bytes(Operand op, const uint8_t* tile, int d, int offset, uint8_t* out) {
        const Table<C> t = make_table<C>(op, offset);
        if (op == Operand::K) {
            for (int block = 0; block < 4; block++, out += d * 16)
                walk_k<C>(
                    tile + static_cast<size_t>(block) * (d / 32) * C::bits * 64, d / 32,
                    t, [&](int g, int i, __m512i v) __attribute__((always_inline)) { _mm512_storeu_si512(out + 512 * g + 64 * i, v); });
        } else {
            for (int n = 0; n < d / 16; n++) {
                const int g = nth_part<C>(n, d / 16, 1);
                walk_v<C>(
                    tile, g, d / 16, t, [&](int s, int i, __m512i v) __attribute__((always_inline)) {
                        _mm512_storeu_si512(out + static_cast<size_t>(g) * 1024 + 512 * s + 64 * i, v);
                    });
            }
        }
    }
    static void transpose(Floats* r) {
        __m512 t[16], u[16];
        for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        for (int i = 0; i < 16; i += 4) // u[i + k]: lanes k, k+4, k+8, k+12 of rows i … i+3
            for (int k = 0; k < 2; k++) {
                u[i + 2 * k]     = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
                u[i + 2 * k + 1] = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
            }
        for (int k = 0; k < 4; k++) { // then quarters: rows 0-3 | 4-7 | 8-11 | 12-15
            const __m512 a = _mm512_shuffle_f32x4(u[k], u[4 + k], 0x88), b = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0x88);
            const __m512 c = _mm512_shuffle_f32x4(u[k], u[4 + k], 0xdd), e = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0xdd);
            r[k]      = _mm512_shuffle_f32x4(a, b, 0x88);
            r[8 + k]  = _mm512_shuffle_f32x4(a, b, 0xdd);
            r[4 + k]  = _mm512_shuffle_f32x4(c, e, 0x88);
            r[12 + k] = _mm512_shuffle_f32x4(c, e, 0xdd);
        }
    }

    // ---- expansion to f32

    static __m512 byte_lane(__m512i x, int b) { // bytes of four neighbours (dims of K, tokens of V) -> one f32 vector each
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sll_epi32(x, _mm_cvtsi32_si128(24 - 8 * b)), 24));
    }

    template <class C> static void expand_k(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C>    t = make_table<C>(Operand::K, 0);
        alignas(64) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        for (int block = 0; block < 4; block++) {
            const __m512 s = _mm512_mul_ps(_mm512_load_ps(scale + 16 * block), _mm512_set1_ps(unit_of(f)));
            walk_k<C>(
                tile + static_cast<size_t>(block) * (d / 32) * C::bits * 64, d / 32,
                t, [&](int g, int i, __m512i v) __attribute__((always_inline)) {
                    for (int b = 0; b < 4; b++)
                        _mm512_storeu_ps(out + static_cast<size_t>(32 * g + 4 * i + b) * kTileTokens + 16 * block,
                                         _mm512_mul_ps(byte_lane(v, b), s));
                });
        }
    }
    template <class C> static void expand_v(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C>    t = make_table<C>(Operand::V, 0);
        alignas(64) float scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const float unit = unit_of(f);
        for (int i = 0; i < kTileTokens; i++) scale[i] *= unit;
        for (int n = 0; n < d / 16; n++) {
            const int g = nth_part<C>(n, d / 16, 1);
            walk_v<C>(
                tile, g, d / 16, t, [&](int s, int i, __m512i v) __attribute__((always_inline)) {
                    for (int b = 0; b < 4; b++) {
                        const int token = 32 * s + 4 * i + b;
                        _mm512_storeu_ps(out + static_cast<size_t>(token) * d + 16 * g,
                                         _mm512_mul_ps(byte_lane(v, b), _mm512_set1_ps(scale[token])));
                    }
                });
        }
    }
    static void expand_f16(Operand op, const uint8_t* tile, int d, float* out) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(tile);
        for (int t = 0; t < kTileTokens; t++, row += d)
            for (int i = 0; i < d; i += 16) {
                const __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i)));
                if (op == Operand::V) {
                    _mm512_storeu_ps(out + static_cast<size_t>(t) * d + i, x);
                } else {
                    alignas(64) float lane[16];
                    _mm512_store_ps(lane, x);
                    for (int k = 0; k < 16; k++) out[static_cast<size_t>(i + k) * kTileTokens + t] = lane[k];
                }
            }
    }

    // ---- what Attention<Isa> calls

    static Floats half_vector(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static void   load_halves(const uint16_t* p, float* out) {
          for (int i = 0; i < kTileTokens; i += 16)
            _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i))));
    }
    static uint64_t equal_bits(const uint16_t* p, uint16_t half) {
        const __m512i value = _mm512_set1_epi16(static_cast<int16_t>(half));
        return _mm512_cmpeq_epi16_mask(load(p), value) | static_cast<uint64_t>(_mm512_cmpeq_epi16_mask(load(p + 32), value)) << 32;
    }
};

} // namespace

const KernelTable& avx512_kernels() {
    static const KernelTable table = {"avx512",
                                      avx512_write.encode,
                                      avx512_write.encode_rows,
                                      avx512_write.decode,
                                      avx512_write.forward,
                                      avx512_write.inverse,
                                      avx512_write.query,
                                      avx512_write.output,
                                      Attention<Avx512>::decode,
                                      Attention<Avx512>::batched};
    return table;
}

} // namespace tightkv
