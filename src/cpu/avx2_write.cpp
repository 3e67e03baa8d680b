// ISA level "avx2", write path. Bit-equal to the scalar reference (compiled without contraction).
#include <immintrin.h>

#include "codec/row_encode.h"
#include "codec/trellis_search.h"
#include "cpu/isa_entries.h"
#include "cpu/x86_bytes.h"

namespace tightkv {

namespace {

// Lanes of the trellis search (codec/trellis_search.h).
struct Avx2Trellis {
    typedef uint16_t Vector __attribute__((vector_size(32)));
    using Row                   = X86Bytes;
    static constexpr int kLanes = 16;

    static Vector quad(const void* p) {
        int64_t x;
        std::memcpy(&x, p, 8);
        return Vector(_mm256_set1_epi64x(x));
    }
    static Vector low_quad(Vector v) { return Vector(_mm256_broadcastq_epi64(_mm256_castsi256_si128(__m256i(v)))); }
    static Vector sub_signed(Vector a, Vector b) { return Vector(_mm256_subs_epi16(__m256i(a), __m256i(b))); }
    static Vector add_signed(Vector a, Vector b) { return Vector(_mm256_adds_epi16(__m256i(a), __m256i(b))); }
    static Vector square(Vector v) { return Vector(_mm256_mulhrs_epi16(__m256i(v), __m256i(v))); }
    static Vector least(Vector a, Vector b) { return Vector(_mm256_min_epu16(__m256i(a), __m256i(b))); }
    static Vector sub_floor(Vector a, Vector b) { return Vector(_mm256_subs_epu16(__m256i(a), __m256i(b))); }
};

struct Avx2Ops {
    // Strides 1, 2, 4 inside a register: lane l becomes x[l] + x[l^h] or x[l^h] - x[l], which is the butterfly exactly (a product with
    // +-1 rounds nothing).
    static __m256 inner(__m256 x) {
        const __m256 sign1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), sign2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
        const __m256 sign4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
        x                  = _mm256_fmadd_ps(x, sign1, _mm256_permute_ps(x, 0xb1));
        x                  = _mm256_fmadd_ps(x, sign2, _mm256_permute_ps(x, 0x4e));
        return _mm256_fmadd_ps(x, sign4, _mm256_permute2f128_ps(x, x, 1));
    }
    // N registers: strides 1 … 4N.
    template <int N> static void block(float* x, const float* before, const float* after) {
        __m256 r[N];
        for (int i = 0; i < N; i++) r[i] = inner(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_loadu_ps(before + 8 * i)));
#pragma GCC unroll 8 // else the registers become an array in memory
        for (int h = 1; h < N; h *= 2)
#pragma GCC unroll 8
            for (int k = 0; k < N / 2; k++) {
                const int    j = k / h * 2 * h + k % h;
                const __m256 a = r[j], b = r[j + h];
                r[j] = _mm256_add_ps(a, b), r[j + h] = _mm256_sub_ps(a, b);
            }
        for (int i = 0; i < N; i++) _mm256_storeu_ps(x + 8 * i, after ? _mm256_mul_ps(r[i], _mm256_loadu_ps(after + 8 * i)) : r[i]);
    }
    static void hadamard(float* x, int n, const float* before, const float* after) {
        if (n == 32) return block<4>(x, before, after);
        if (n == 64) return block<8>(x, before, after);
        for (int i = 0; i < n; i += 64) block<8>(x + i, before + i, nullptr);
        for (int h = 64; h < n; h *= 2) {
            const bool last = 2 * h == n;
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j += 8) {
                    const __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + h);
                    __m256       c = _mm256_add_ps(a, b), e = _mm256_sub_ps(a, b);
                    if (last) c = _mm256_mul_ps(c, _mm256_loadu_ps(after + j)), e = _mm256_mul_ps(e, _mm256_loadu_ps(after + j + h));
                    _mm256_storeu_ps(x + j, c);
                    _mm256_storeu_ps(x + j + h, e);
                }
        }
    }
    static float sum_squares(const float* x, int d) {
        __m256 lo = _mm256_setzero_ps(), hi = _mm256_setzero_ps();
        for (int i = 0; i < d; i += 16) {
            const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
            lo = _mm256_add_ps(lo, _mm256_mul_ps(a, a));
            hi = _mm256_add_ps(hi, _mm256_mul_ps(b, b));
        }
        return fold(_mm256_add_ps(lo, hi));
    }
    static float fold(__m256 x) { // 8 -> 4 -> 2 -> 1, each lane with the one half the width away
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y        = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    static __m256i levels(const Codebook& book) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book.level.data())));
    }
    // 32 values at a time: fixed point with saturation to int16; then |v| against the positive thresholds only. code = thresholds below v;
    // with n of them below |v| that is half + n for v > 0 and half - 1 - n = half + ~n else, where v <= 0 passes -t already at -v = t.
    template <int Half> static __m256i code16(const float* y, __m256 factor, const Codebook& book) {
        const __m256i a   = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y), factor));
        const __m256i b   = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + 8), factor));
        const __m256i v   = _mm256_packs_epi32(a, b); // halves interleaved; undone by the caller
        const __m256i neg = _mm256_cmpgt_epi16(_mm256_set1_epi16(1), v);
        const __m256i m   = _mm256_adds_epi16(_mm256_xor_si256(v, neg), _mm256_and_si256(neg, _mm256_set1_epi16(2)));
        __m256i       n   = _mm256_setzero_si256();
        for (int k = Half; k + 1 < 2 * Half; k++) n = _mm256_sub_epi16(n, _mm256_cmpgt_epi16(m, _mm256_set1_epi16(book.threshold[k])));
        return _mm256_add_epi16(_mm256_xor_si256(n, neg), _mm256_set1_epi16(static_cast<int16_t>(Half)));
    }
    static int code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        return book.n == 4   ? code_half<2>(y, d, to_fixed, book, codes)
               : book.n == 8 ? code_half<4>(y, d, to_fixed, book, codes)
                             : code_half<8>(y, d, to_fixed, book, codes);
    }
    // Half: levels of one sign.
    template <int Half> static int code_half(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        const __m256  f     = _mm256_set1_ps(to_fixed);
        const __m256i table = levels(book), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        __m256i       norm2 = _mm256_setzero_si256();
        for (int i = 0; i < d; i += 32) {
            const __m256i packed = _mm256_packus_epi16(code16<Half>(y + i, f, book), code16<Half>(y + i + 16, f, book));
            const __m256i c      = _mm256_permutevar8x32_epi32(packed, order);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), c);
            const __m256i size = _mm256_abs_epi8(_mm256_shuffle_epi8(table, c)); // at most 127: u8 and s8 alike, 2 * 127² < 2^15
            norm2              = _mm256_add_epi32(norm2, _mm256_madd_epi16(_mm256_maddubs_epi16(size, size), _mm256_set1_epi16(1)));
        }
        alignas(32) int32_t lane[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane), norm2);
        return lane[0] + lane[1] + lane[2] + lane[3] + lane[4] + lane[5] + lane[6] + lane[7];
    }
    static void levels_of(const uint8_t* codes, int d, const Codebook& book, float w, float* y) {
        const __m128i table = _mm256_castsi256_si128(levels(book));
        const __m256  f     = _mm256_set1_ps(w);
        for (int i = 0; i < d; i += 16) {
            const __m128i v = _mm_shuffle_epi8(table, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
            _mm256_storeu_ps(y + i, _mm256_mul_ps(f, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v))));
            _mm256_storeu_ps(y + i + 8, _mm256_mul_ps(f, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))));
        }
    }
    static int code_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
        return search_trellis<Avx2Trellis>(y, d, to_fixed, bits, guess, codes);
    }
    static void trellis_levels_of(const uint8_t* codes, int d, int bits, float w, float* y) {
        trellis_levels<Avx2Trellis>(codes, d, bits, w, y);
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i += 8)
            _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT)));
    }
};

} // namespace

const WriteEntries avx2_write = {encode<Avx2Ops>,  encode_rows<Avx2Ops>, decode<Avx2Ops>, forward<Avx2Ops>,
                                 inverse<Avx2Ops>, query<Avx2Ops>,       output<Avx2Ops>};

} // namespace tightkv
