// ISA level "avx2", write path. Bit-equal to the scalar reference (compiled without contraction).
#include <immintrin.h>

#include "codec/row_encode.h"
#include "cpu/isa_entries.h"

namespace tightkv {

namespace {

struct Avx2Ops {
    // Strides 1, 2, 4 inside a register: lane l becomes x[l] + x[l^h] or x[l^h] - x[l], which is the butterfly exactly.
    static __m256 inner(__m256 x) {
        const __m256 odd1  = _mm256_castsi256_ps(_mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1));
        const __m256 odd2  = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1));
        const __m256 minus = _mm256_set1_ps(-0.0f);
        x                  = _mm256_add_ps(_mm256_permute_ps(x, 0xb1), _mm256_xor_ps(x, _mm256_and_ps(odd1, minus)));
        x                  = _mm256_add_ps(_mm256_permute_ps(x, 0x4e), _mm256_xor_ps(x, _mm256_and_ps(odd2, minus)));
        const __m256 high  = _mm256_xor_ps(x, _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f));
        return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), high);
    }
    static void fwht(float* x, int n) {
        for (int i = 0; i < n; i += 8) _mm256_storeu_ps(x + i, inner(_mm256_loadu_ps(x + i)));
        for (int h = 8; h < n; h *= 2)
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j += 8) {
                    const __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + h);
                    _mm256_storeu_ps(x + j, _mm256_add_ps(a, b));
                    _mm256_storeu_ps(x + j + h, _mm256_sub_ps(a, b));
                }
    }
    static float sum_squares(const float* x, int d) {
        __m256 lo = _mm256_setzero_ps(), hi = _mm256_setzero_ps();
        for (int i = 0; i < d; i += 16) {
            const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
            lo = _mm256_add_ps(lo, _mm256_mul_ps(a, a));
            hi = _mm256_add_ps(hi, _mm256_mul_ps(b, b));
        }
        alignas(32) float lane[8];
        _mm256_store_ps(lane, _mm256_add_ps(lo, hi));
        for (int n = 4; n >= 1; n /= 2)
            for (int i = 0; i < n; i++) lane[i] += lane[i + n];
        return lane[0];
    }
    // 16 values at a time: fixed point with saturation to int16, then minus one per threshold below.
    static void code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        const __m256 f = _mm256_set1_ps(to_fixed);
        for (int i = 0; i < d; i += 16) {
            const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), f));
            const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i + 8), f));
            const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
            __m256i       c = _mm256_setzero_si256();
            for (int k = 0; k + 1 < book.n; k++) c = _mm256_sub_epi16(c, _mm256_cmpgt_epi16(v, _mm256_set1_epi16(book.threshold[k])));
            const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), bytes);
        }
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i += 8)
            _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT)));
    }
};

} // namespace

const WriteEntries avx2_write = {encode<Avx2Ops>, decode<Avx2Ops>, forward<Avx2Ops>, inverse<Avx2Ops>};

} // namespace tightkv
