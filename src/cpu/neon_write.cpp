// ISA level "neon" (aarch64 with dot products), write path. Bit-equal to the scalar reference (compiled without contraction).
#include <arm_neon.h>

#include "codec/row_encode.h"
#include "codec/trellis_search.h"
#include "cpu/isa_entries.h"

namespace tightkv {

namespace {

// 16 bytes at a time (codec/trellis_row.h).
struct NeonBytes {
    static Bytes look(Bytes table, Bytes index) { return Bytes(vqtbl1q_u8(uint8x16_t(table), uint8x16_t(index))); }
    static Words square(Words e) { return Words(vqrdmulhq_s16(int16x8_t(e), int16x8_t(e))); }
    static Words add(Words a, Words b) { return Words(vqaddq_s16(int16x8_t(a), int16x8_t(b))); }
    static Words sub(Words a, Words b) { return Words(vqsubq_u16(uint16x8_t(a), uint16x8_t(b))); }
};

// Lanes of the trellis search (codec/trellis_search.h).
struct NeonTrellis {
    using Vector                = uint16x8_t;
    using Row                   = NeonBytes;
    static constexpr int kLanes = 8;

    static Vector quad(const void* p) {
        uint64_t x;
        std::memcpy(&x, p, 8);
        return vreinterpretq_u16_u64(vdupq_n_u64(x));
    }
    static Vector low_quad(Vector v) { return vreinterpretq_u16_u64(vdupq_laneq_u64(vreinterpretq_u64_u16(v), 0)); }
    static Vector sub_signed(Vector a, Vector b) {
        return vreinterpretq_u16_s16(vqsubq_s16(vreinterpretq_s16_u16(a), vreinterpretq_s16_u16(b)));
    }
    static Vector add_signed(Vector a, Vector b) {
        return vreinterpretq_u16_s16(vqaddq_s16(vreinterpretq_s16_u16(a), vreinterpretq_s16_u16(b)));
    }
    static Vector square(Vector v) { return vreinterpretq_u16_s16(vqrdmulhq_s16(vreinterpretq_s16_u16(v), vreinterpretq_s16_u16(v))); }
    static Vector least(Vector a, Vector b) { return vminq_u16(a, b); }
    static Vector sub_floor(Vector a, Vector b) { return vqsubq_u16(a, b); }
};

struct NeonOps {
    // Strides 1 and 2 inside a register: lane l becomes x[l] + x[l^h] or x[l^h] - x[l] (a product with +-1 rounds nothing).
    static float32x4_t inner(float32x4_t x) {
        const float32x4_t sign1 = {1, -1, 1, -1}, sign2 = {1, 1, -1, -1};
        x = vfmaq_f32(vrev64q_f32(x), x, sign1);
        return vfmaq_f32(vextq_f32(x, x, 2), x, sign2);
    }
    // N registers: strides 1 … 2N.
    template <int N> static void block(float* x, const float* before, const float* after) {
        float32x4_t r[N];
        for (int i = 0; i < N; i++) r[i] = inner(vmulq_f32(vld1q_f32(x + 4 * i), vld1q_f32(before + 4 * i)));
#pragma GCC unroll 8 // else the registers become an array in memory
        for (int h = 1; h < N; h *= 2)
#pragma GCC unroll 8
            for (int k = 0; k < N / 2; k++) {
                const int         j = k / h * 2 * h + k % h;
                const float32x4_t a = r[j], b = r[j + h];
                r[j] = vaddq_f32(a, b), r[j + h] = vsubq_f32(a, b);
            }
        for (int i = 0; i < N; i++) vst1q_f32(x + 4 * i, after ? vmulq_f32(r[i], vld1q_f32(after + 4 * i)) : r[i]);
    }
    static void hadamard(float* x, int n, const float* before, const float* after) {
        if (n == 32) return block<8>(x, before, after);
        if (n == 64) return block<16>(x, before, after);
        for (int i = 0; i < n; i += 64) block<16>(x + i, before + i, nullptr);
        for (int h = 64; h < n; h *= 2) {
            const bool last = 2 * h == n;
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j += 4) {
                    const float32x4_t a = vld1q_f32(x + j), b = vld1q_f32(x + j + h);
                    float32x4_t       c = vaddq_f32(a, b), e = vsubq_f32(a, b);
                    if (last) c = vmulq_f32(c, vld1q_f32(after + j)), e = vmulq_f32(e, vld1q_f32(after + j + h));
                    vst1q_f32(x + j, c);
                    vst1q_f32(x + j + h, e);
                }
        }
    }
    static float sum_squares(const float* x, int d) {
        float32x4_t sum[4] = {};
        for (int i = 0; i < d; i += 16)
            for (int k = 0; k < 4; k++) {
                const float32x4_t a = vld1q_f32(x + i + 4 * k);
                sum[k]              = vaddq_f32(sum[k], vmulq_f32(a, a));
            }
        // 16 -> 8 -> 4 -> 2 -> 1, each lane with the one half the width away
        const float32x4_t four = vaddq_f32(vaddq_f32(sum[0], sum[2]), vaddq_f32(sum[1], sum[3]));
        return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
    }
    // 16 values at a time: fixed point with saturation to int16, then |v| against the positive thresholds only (avx2_write.cpp says why).
    template <int Half> static int16x8_t code8(const float* y, float factor, const Codebook& book) {
        const int32x4_t  a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(y), factor)), b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(y + 4), factor));
        const int16x8_t  v   = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
        const int16x8_t  one = vdupq_n_s16(1);
        const uint16x8_t neg = vcltq_s16(v, one);
        const int16x8_t  m   = vbslq_s16(neg, vqsubq_s16(one, v), v);
        uint16x8_t       n   = vdupq_n_u16(0);
        for (int k = Half; k + 1 < 2 * Half; k++) n = vsubq_u16(n, vcgtq_s16(m, vdupq_n_s16(book.threshold[k])));
        return vaddq_s16(vreinterpretq_s16_u16(veorq_u16(n, neg)), vdupq_n_s16(static_cast<int16_t>(Half)));
    }
    static int code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        return book.n == 4   ? code_half<2>(y, d, to_fixed, book, codes)
               : book.n == 8 ? code_half<4>(y, d, to_fixed, book, codes)
                             : code_half<8>(y, d, to_fixed, book, codes);
    }
    // Half: levels of one sign.
    template <int Half> static int code_half(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        const int8x16_t table = vld1q_s8(book.level.data());
        int32x4_t       norm2 = vdupq_n_s32(0);
        for (int i = 0; i < d; i += 16) {
            const int16x8_t  a = code8<Half>(y + i, to_fixed, book), b = code8<Half>(y + i + 8, to_fixed, book);
            const uint8x16_t c = vuzp1q_u8(vreinterpretq_u8_s16(a), vreinterpretq_u8_s16(b));
            vst1q_u8(codes + i, c);
            const int8x16_t level = vqtbl1q_s8(table, c);
            norm2                 = vdotq_s32(norm2, level, level);
        }
        return vaddvq_s32(norm2);
    }
    static void levels_of(const uint8_t* codes, int d, const Codebook& book, float w, float* y) {
        const int8x16_t table = vld1q_s8(book.level.data());
        const auto      put   = [w](float* at, int16x4_t v) { vst1q_f32(at, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(v)), w)); };
        for (int i = 0; i < d; i += 16) {
            const int8x16_t v  = vqtbl1q_s8(table, vld1q_u8(codes + i));
            const int16x8_t lo = vmovl_s8(vget_low_s8(v)), hi = vmovl_high_s8(v);
            put(y + i, vget_low_s16(lo));
            put(y + i + 4, vget_high_s16(lo));
            put(y + i + 8, vget_low_s16(hi));
            put(y + i + 12, vget_high_s16(hi));
        }
    }
    static int code_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
        return search_trellis<NeonTrellis>(y, d, to_fixed, bits, guess, codes);
    }
    static void trellis_levels_of(const uint8_t* codes, int d, int bits, float w, float* y) {
        trellis_levels<NeonTrellis>(codes, d, bits, w, y);
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i += 4) vst1q_f32(x + i, vcvt_f32_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    }
};

} // namespace

const WriteEntries neon_write = {encode<NeonOps>,  encode_rows<NeonOps>, decode<NeonOps>, forward<NeonOps>,
                                 inverse<NeonOps>, query<NeonOps>,       output<NeonOps>};

} // namespace tightkv
