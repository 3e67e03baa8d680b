// ISA level "avx512", write path. Bit-equal to the scalar reference (compiled without contraction).
#include <immintrin.h>

#include "codec/row_encode.h"
#include "cpu/isa_entries.h"

namespace tightkv {

namespace {

struct Avx512Ops {
    static __m512 flip(__m512 x, __mmask16 lanes) { // sign of the given lanes
        const __m512i minus = _mm512_set1_epi32(INT32_MIN), bits = _mm512_castps_si512(x);
        return _mm512_castsi512_ps(_mm512_mask_xor_epi32(bits, lanes, bits, minus));
    }
    // Strides 1, 2, 4, 8 inside a register: lane l becomes x[l] + x[l^h] or x[l^h] - x[l].
    static __m512 inner(__m512 x) {
        x = _mm512_add_ps(_mm512_permute_ps(x, 0xb1), flip(x, 0xaaaa));
        x = _mm512_add_ps(_mm512_permute_ps(x, 0x4e), flip(x, 0xcccc));
        x = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0xb1), flip(x, 0xf0f0));
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0x4e), flip(x, 0xff00));
    }
    static void fwht(float* x, int n) {
        for (int i = 0; i < n; i += 16) _mm512_storeu_ps(x + i, inner(_mm512_loadu_ps(x + i)));
        for (int h = 16; h < n; h *= 2)
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j += 16) {
                    const __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + h);
                    _mm512_storeu_ps(x + j, _mm512_add_ps(a, b));
                    _mm512_storeu_ps(x + j + h, _mm512_sub_ps(a, b));
                }
    }
    static float sum_squares(const float* x, int d) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < d; i += 16) {
            const __m512 a = _mm512_loadu_ps(x + i);
            sum            = _mm512_add_ps(sum, _mm512_mul_ps(a, a));
        }
        alignas(64) float lane[16];
        _mm512_store_ps(lane, sum);
        for (int n = 8; n >= 1; n /= 2)
            for (int i = 0; i < n; i++) lane[i] += lane[i + n];
        return lane[0];
    }
    // 32 values at a time: fixed point with saturation to int16, then plus one per threshold below.
    static void code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        const __m512 f = _mm512_set1_ps(to_fixed);
        for (int i = 0; i < d; i += 32) {
            const __m256i a   = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(y + i), f)));
            const __m256i b   = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(y + i + 16), f)));
            const __m512i v   = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
            const __m512i one = _mm512_set1_epi16(1);
            __m512i       c   = _mm512_setzero_si512();
            for (int k = 0; k + 1 < book.n; k++)
                c = _mm512_mask_add_epi16(c, _mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(book.threshold[k])), c, one);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), _mm512_cvtepi16_epi8(c));
        }
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i += 16)
            _mm512_storeu_ps(x + i, _mm512_cvtph_ps(_mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT)));
    }
};

} // namespace

const WriteEntries avx512_write = {encode<Avx512Ops>, decode<Avx512Ops>, forward<Avx512Ops>, inverse<Avx512Ops>};

} // namespace tightkv
