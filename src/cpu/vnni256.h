// Read path of the levels that have VPDPBUSD on 256 bits: as avx2, but nothing saturates and one instruction multiplies and sums.
// Processors have it in one of two encodings, or in both, and each is a level of its own: avxvnni (AVX-VNNI: Alder Lake, Zen 5) and
// avx512vnni (AVX512_VNNI with AVX512VL: Cascade Lake, which lacks the VBMI of level avx512; 32 registers, VPTERNLOG).
// The including unit names the intrinsic of its encoding, TIGHTKV_DPBUSD: which ones a compiler offers says nothing about that.
#pragma once
#include "cpu/avx2_isa.h"
#include "cpu/isa_entries.h"

namespace tightkv {

namespace {

inline __m256i dot4(__m256i acc, __m256i u, __m256i s) { return TIGHTKV_DPBUSD(acc, u, s); } // four bytes of every lane

struct Vnni256 : Avx2 {
    using QueryOperand                   = ByteQueries;
    static constexpr auto prepare_query  = prepare_byte_queries;
    static constexpr auto quantize_query = quantize_by_largest;

    template <class C, int R> static void scores_of(const uint8_t* tile, int d, const QueryOperand& op, float* out) {
        static const Table<C> table = make_table<C>(Operand::K, 128);
        const Table<C>        t     = table;
        for (int block = 0; block < 8; block++) { // eight tokens
            __m256i acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_set1_epi32(op.minus[r]);
            walk_k<C>(
                tile, block, d / 32, t, [&](int g, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                    for (int r = 0; r < R; r++) {
                        const int8_t* q = op.q[r] + 32 * g + 4 * i;
                        acc[r]          = dot4(acc[r], a, spread(q));
                        acc[r]          = dot4(acc[r], b, spread(q + 4));
                        acc[r]          = dot4(acc[r], c, spread(q + 8));
                        acc[r]          = dot4(acc[r], e, spread(q + 12));
                    }
                });
            for (int r = 0; r < R; r++)
                _mm256_storeu_ps(out + r * kTileTokens + block * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r]), _mm256_set1_ps(op.step[r])));
        }
    }
    template <class C, int R> static void weigh_of(const uint8_t* tile, int d, const uint8_t* w8, const float* step, float* o) {
        static const Table<C> table = make_table<C>(Operand::V, 0);
        const Table<C>        t     = table;
        const auto            half  = [&](int g, int h) __attribute__((always_inline)) { // eight dims
            __m256i acc[R];
            for (int r = 0; r < R; r++) acc[r] = _mm256_setzero_si256();
            walk_v<C>(
                tile, g, d / 16, h, t, [&](int s, int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) {
                                for (int r = 0; r < R; r++) {
                                    const uint8_t* x = w8 + r * kTileTokens + 32 * s + 4 * i;
                                    acc[r]           = dot4(acc[r], spread(x), a);
                                    acc[r]           = dot4(acc[r], spread(x + 4), b);
                                    acc[r]           = dot4(acc[r], spread(x + 8), c);
                                    acc[r]           = dot4(acc[r], spread(x + 12), e);
                    }
                });
            for (int r = 0; r < R; r++) {
                            float* at = o + static_cast<size_t>(r) * d + 16 * g + 8 * h;
                            _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r]), _mm256_set1_ps(step[r]), _mm256_loadu_ps(at)));
            }
        };
        each_half<C>(d / 16, half);
    }

    static float quantize_weights(const Floats* w, uint8_t* w8) {
        Floats top = w[0];
        for (int i = 1; i < 8; i++) top = _mm256_max_ps(top, w[i]);
        return weights_to_bytes(w, fold_max(top), kWeightLimit, w8);
    }

    // ---- many rows

    static constexpr float kWeightLimit = 255.0f;

    static Ints dot2(Ints acc, Ints u0, Ints s0, Ints u1, Ints s1) {
        const auto i = [](Ints v) { return reinterpret_cast<__m256i>(v); };
        return reinterpret_cast<Ints>(dot4(dot4(i(acc), i(u0), i(s0)), i(u1), i(s1)));
    }
    static Floats query_factor(const float* q, int d) {
        Floats top{};
        for (int i = 0; i < d; i++) {
            const Floats x = _mm256_loadu_ps(q + static_cast<size_t>(i) * kLanes);
            top            = _mm256_max_ps(top, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x));
        }
        return top > 1e-30f ? 127.0f / top : Floats{};
    }
    static Floats weight_bound(const Floats* w) {
        Floats top = w[0];
        for (int k = 1; k < 8; k++) top = _mm256_max_ps(top, w[k]);
        return top;
    }
};

KernelTable vnni256_table(const char* name) {
    return {name,
            avx2_write.encode,
            avx2_write.encode_rows,
            avx2_write.decode,
            avx2_write.forward,
            avx2_write.inverse,
            avx2_write.query,
            avx2_write.output,
            Attention<Vnni256>::decode,
            Attention<Vnni256>::batched};
}

} // namespace

} // namespace tightkv
