// ISA level "avx512", write path. Bit-equal to the scalar reference (compiled without contraction).
#include <immintrin.h>

#include "codec/row_encode.h"
#include "codec/trellis_search.h"
#include "cpu/isa_entries.h"
#include "cpu/x86_bytes.h"

namespace tightkv {

namespace {

// Lanes of the trellis search (codec/trellis_search.h).
struct Avx512Trellis {
    typedef uint16_t Vector __attribute__((vector_size(64)));
    using Row                   = X86Bytes;
    static constexpr int kLanes = 32;

    static Vector quad(const void* p) {
        int64_t x;
        std::memcpy(&x, p, 8);
        return Vector(_mm512_set1_epi64(x));
    }
    static Vector low_quad(Vector v) { return Vector(_mm512_broadcastq_epi64(_mm512_castsi512_si128(__m512i(v)))); }
    static Vector sub_signed(Vector a, Vector b) { return Vector(_mm512_subs_epi16(__m512i(a), __m512i(b))); }
    static Vector add_signed(Vector a, Vector b) { return Vector(_mm512_adds_epi16(__m512i(a), __m512i(b))); }
    static Vector square(Vector v) { return Vector(_mm512_mulhrs_epi16(__m512i(v), __m512i(v))); }
    static Vector least(Vector a, Vector b) { return Vector(_mm512_min_epu16(__m512i(a), __m512i(b))); }
    static Vector sub_floor(Vector a, Vector b) { return Vector(_mm512_subs_epu16(__m512i(a), __m512i(b))); }
};

struct Avx512Ops {
    // Strides 1, 2, 4, 8 inside a register: lane l becomes x[l] + x[l^h] or x[l^h] - x[l] (a product with +-1 rounds nothing).
    static __m512 inner(__m512 x) {
        const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
        x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xaaaa, one, minus), _mm512_permute_ps(x, 0xb1));
        x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xcccc, one, minus), _mm512_permute_ps(x, 0x4e));
        x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xf0f0, one, minus), _mm512_shuffle_f32x4(x, x, 0xb1));
        return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xff00, one, minus), _mm512_shuffle_f32x4(x, x, 0x4e));
    }
    // N registers: strides 1 … 8N.
    template <int N> static void block(float* x, const float* before, const float* after) {
        __m512 r[N];
        for (int i = 0; i < N; i++) r[i] = inner(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_loadu_ps(before + 16 * i)));
#pragma GCC unroll 8 // else the registers become an array in memory
        for (int h = 1; h < N; h *= 2)
#pragma GCC unroll 8
            for (int k = 0; k < N / 2; k++) {
                const int    j = k / h * 2 * h + k % h;
                const __m512 a = r[j], b = r[j + h];
                r[j] = _mm512_add_ps(a, b), r[j + h] = _mm512_sub_ps(a, b);
            }
        for (int i = 0; i < N; i++) _mm512_storeu_ps(x + 16 * i, after ? _mm512_mul_ps(r[i], _mm512_loadu_ps(after + 16 * i)) : r[i]);
    }
    static void hadamard(float* x, int n, const float* before, const float* after) {
        if (n == 32) return block<2>(x, before, after);
        if (n == 64) return block<4>(x, before, after);
        if (n == 128) return block<8>(x, before, after);
        for (int i = 0; i < n; i += 128) block<8>(x + i, before + i, nullptr);
        for (int h = 128; h < n; h *= 2) {
            const bool last = 2 * h == n;
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j += 16) {
                    const __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + h);
                    __m512       c = _mm512_add_ps(a, b), e = _mm512_sub_ps(a, b);
                    if (last) c = _mm512_mul_ps(c, _mm512_loadu_ps(after + j)), e = _mm512_mul_ps(e, _mm512_loadu_ps(after + j + h));
                    _mm512_storeu_ps(x + j, c);
                    _mm512_storeu_ps(x + j + h, e);
                }
        }
    }
    static float sum_squares(const float* x, int d) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < d; i += 16) {
            const __m512 a = _mm512_loadu_ps(x + i);
            sum            = _mm512_add_ps(sum, _mm512_mul_ps(a, a));
        }
        // 16 -> 8 -> 4 -> 2 -> 1, each lane with the one half the width away
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
        __m128       y    = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        y                 = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    // 32 values at a time: fixed point with saturation to int16, then |v| against the positive thresholds only (avx2_write.cpp says why).
    static int code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        return book.n == 4   ? code_half<2>(y, d, to_fixed, book, codes)
               : book.n == 8 ? code_half<4>(y, d, to_fixed, book, codes)
                             : code_half<8>(y, d, to_fixed, book, codes);
    }
    // Half: levels of one sign.
    template <int Half> static int code_half(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        const __m512  f     = _mm512_set1_ps(to_fixed);
        const __m512i one   = _mm512_set1_epi16(1);
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book.level.data())));
        __m512i       norm2 = _mm512_setzero_si512();
        for (int i = 0; i < d; i += 32) {
            const __m256i   a   = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(y + i), f)));
            const __m256i   b   = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(y + i + 16), f)));
            const __m512i   v   = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
            const __mmask32 neg = _mm512_cmplt_epi16_mask(v, one);
            const __m512i   m   = _mm512_mask_subs_epi16(v, neg, one, v);
            __m512i         n   = _mm512_setzero_si512();
            for (int k = Half; k + 1 < 2 * Half; k++)
                n = _mm512_mask_add_epi16(n, _mm512_cmpgt_epi16_mask(m, _mm512_set1_epi16(book.threshold[k])), n, one);
            n               = _mm512_mask_sub_epi16(n, neg, _mm512_set1_epi16(-1), n);
            n               = _mm512_add_epi16(n, _mm512_set1_epi16(static_cast<int16_t>(Half)));
            const __m256i c = _mm512_cvtepi16_epi8(n);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), c);
            const __m512i level = _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(table, c));
            norm2               = _mm512_dpwssd_epi32(norm2, level, level);
        }
        return _mm512_reduce_add_epi32(norm2);
    }
    static void levels_of(const uint8_t* codes, int d, const Codebook& book, float w, float* y) {
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(book.level.data()));
        for (int i = 0; i < d; i += 16) {
            const __m128i v = _mm_shuffle_epi8(table, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
            _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_set1_ps(w), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v))));
        }
    }
    static int code_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
        return search_trellis<Avx512Trellis>(y, d, to_fixed, bits, guess, codes);
    }
    static void trellis_levels_of(const uint8_t* codes, int d, int bits, float w, float* y) {
        trellis_levels<Avx512Trellis>(codes, d, bits, w, y);
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i += 16)
            _mm512_storeu_ps(x + i, _mm512_cvtph_ps(_mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT)));
    }
};

} // namespace

const WriteEntries avx512_write = {encode<Avx512Ops>,  encode_rows<Avx512Ops>, decode<Avx512Ops>, forward<Avx512Ops>,
                                   inverse<Avx512Ops>, query<Avx512Ops>,       output<Avx512Ops>};

} // namespace tightkv
