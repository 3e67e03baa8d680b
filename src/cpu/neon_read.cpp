// ISA level "neon" (aarch64 with dot products), read path: TBL looks the codes up, SDOT and UDOT multiply and sum, nothing saturates:
//   scores  s8 level times s8 query
//   values  u8 weight times u8 = level + 128; -128 Σw is the accumulators' initial value
// Both take a dword of one operand by its number, so queries, weights or codes are loaded 16 bytes at a time and never spread over lanes.
// i8mm is left out: USDOT would save the -128 Σw alone, a few instructions per tile, and SMMLA sums eight neighbours, where tiles have
// four.
#include <arm_neon.h>

#include "cpu/attend_tiles.h"
#include "cpu/isa_entries.h"
#include "cpu/neon_unpack.h"

namespace tightkv {

namespace {

struct Neon {
    static constexpr int kLanes = 4;
    typedef float        Floats __attribute__((vector_size(16)));
    typedef int32_t      Ints __attribute__((vector_size(16)));
    typedef float        FloatsInMemory __attribute__((vector_size(16), aligned(4), may_alias));

    static constexpr int   kOffsetK = 0, kOffsetV = 128; // SDOT, UDOT
    static constexpr float kWeightLimit = 255.0f;

    static float fold_max(Floats v) { return vmaxvq_f32(v); }
    static float fold_sum(Floats v) { return vaddvq_f32(v); }

    static int32x4_t dot(int32x4_t acc, uint8x16_t level, int8x16_t q, int lane) { // lane: known when compiled
        const int8x16_t x = vreinterpretq_s8_u8(level);
        switch (lane) {
        case 0: return vdotq_laneq_s32(acc, x, q, 0);
        case 1: return vdotq_laneq_s32(acc, x, q, 1);
        case 2: return vdotq_laneq_s32(acc, x, q, 2);
        default: return vdotq_laneq_s32(acc, x, q, 3);
        }
    }
    static int32x4_t dot(int32x4_t acc, uint8x16_t a, uint8x16_t b, int lane) {
        const uint32x4_t sum = vreinterpretq_u32_s32(acc); // modulo 2^32, as the signed one
        switch (lane) {
        case 0: return vreinterpretq_s32_u32(vdotq_laneq_u32(sum, a, b, 0));
        case 1: return vreinterpretq_s32_u32(vdotq_laneq_u32(sum, a, b, 1));
        case 2: return vreinterpretq_s32_u32(vdotq_laneq_u32(sum, a, b, 2));
        default: return vreinterpretq_s32_u32(vdotq_laneq_u32(sum, a, b, 3));
        }
    }

    using QueryOperand                   = ByteQueries;
    static constexpr auto prepare_query  = prepare_byte_queries;
    static constexpr auto quantize_query = quantize_by_largest;

    template <class C, int R> static void scores_of(const uint8_t* tile, int d, const QueryOperand& op, float* out) {
        static const Table<C> table = make_table<C>(kOffsetK);
        const Table<C>        t     = table;
        for (int block = 0; block < 16; block++) { // four tokens
            int32x4_t acc[R];
            for (int r = 0; r < R; r++) acc[r] = vdupq_n_s32(0);
            walk_k<C>(
                tile, block, d / 32,
                t, [&](int g, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    for (int r = 0; r < R; r++) {
                        const int8x16_t q = vld1q_s8(op.q[r] + 32 * g + 4 * i);
                        acc[r]            = dot(dot(dot(dot(acc[r], a, q, 0), b, q, 1), c, q, 2), e, q, 3);
                    }
                });
            for (int r = 0; r < R; r++) vst1q_f32(out + r * kTileTokens + 4 * block, vmulq_n_f32(vcvtq_f32_s32(acc[r]), op.step[r]));
        }
    }

    static Floats from_bytes(const uint8_t* p) {
        uint32_t x;
        std::memcpy(&x, p, 4);
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(x)))));
    }
    static int sum_bytes(const uint8_t* p) {
        int sum = 0;
        for (int i = 0; i < kTileTokens; i += 16) sum += vaddlvq_u8(vld1q_u8(p + i));
        return sum;
    }
    // w >= 0, 64 tokens. Returns the step: w ~ step * w8.
    static float quantize_weights(const Floats* w, uint8_t* w8) {
        float32x4_t top = w[0];
        for (int i = 1; i < 16; i++) top = vmaxq_f32(top, w[i]);
        const float bound = vmaxvq_f32(top);
        // Below 1e-30 a tile adds nothing that f32 could hold beside the rest; the division would overflow.
        const float inv = bound > 1e-30f ? kWeightLimit / bound : 0.0f;
        for (int i = 0; i < 16; i += 4) {
            const auto n = [&](int k) { return vmovn_u32(vcvtnq_u32_f32(vmulq_n_f32(w[i + k], inv))); };
            vst1q_u8(w8 + 4 * i, vcombine_u8(vmovn_u16(vcombine_u16(n(0), n(1))), vmovn_u16(vcombine_u16(n(2), n(3)))));
        }
        return bound / kWeightLimit;
    }

    template <class C, int R> static void weigh_of(const uint8_t* tile, int d, const uint8_t* w8, const float* step, float* o) {
        static const Table<C> table = make_table<C>(kOffsetV);
        const Table<C>        t     = table;
        int32_t               minus[R]; // -128 Σw
        for (int r = 0; r < R; r++) minus[r] = -kOffsetV * sum_bytes(w8 + r * kTileTokens);
        for (int n = 0; n < d / 4; n++) {
            const int quarter = nth_part<C>(n, d / 4, 4); // four dims
            int32x4_t acc[R];
            for (int r = 0; r < R; r++) acc[r] = vdupq_n_s32(minus[r]);
            walk_v<C>(
                tile, quarter, d / 4,
                t, [&](int s, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    for (int r = 0; r < R; r++) {
                        const uint8x16_t w = vld1q_u8(w8 + r * kTileTokens + 32 * s + 4 * i);
                        acc[r]             = dot(dot(dot(dot(acc[r], a, w, 0), b, w, 1), c, w, 2), e, w, 3);
                    }
                });
            for (int r = 0; r < R; r++) {
                float* at = o + static_cast<size_t>(r) * d + quarter * 4;
                vst1q_f32(at, vfmaq_n_f32(vld1q_f32(at), vcvtq_f32_s32(acc[r]), step[r]));
            }
        }
    }

    // ---- many rows

    static constexpr int kBlock = 8; // tokens or dims of a register block

    struct Dword {
        uint8x16_t four;
        int        lane;
    };
    static Dword  dword(const uint8_t* p, int j) { return {vld1q_u8(p + j / 4 * 16), j % 4}; }
    static bool   any(Ints mask) { return vmaxvq_u32(vreinterpretq_u32_s32(mask)) != 0; }
    static Ints   to_ints(Floats v) { return vcvtnq_s32_f32(v); }
    static Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
    static Ints   dot2(Ints acc, Dword k0, Ints q0, Dword k1, Ints q1) {
          const auto i = [](Ints v) { return vreinterpretq_u8_s32(v); };
          const auto k = [](Dword v) { return vreinterpretq_s8_u8(v.four); };
          return dot(dot(acc, i(q0), k(k0), k0.lane), i(q1), k(k1), k1.lane);
    }
    static Ints dot2(Ints acc, Ints w0, Dword v0, Ints w1, Dword v1) {
        const auto i = [](Ints v) { return vreinterpretq_u8_s32(v); };
        return dot(dot(acc, i(w0), v0.four, v0.lane), i(w1), v1.four, v1.lane);
    }
    static Ints pack(Ints a, Ints b, Ints c, Ints d) { // SLI: shift left and insert
        return vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(a, b, 8), c, 16), d, 24);
    }
    static Ints   pack_signed(Ints a, Ints b, Ints c, Ints d) { return pack(a, b, c, d); }
    static Ints   pack_unsigned(Ints a, Ints b, Ints c, Ints d) { return pack(a, b, c, d); }
    static Floats query_factor(const float* q, int d) {
        Floats top{};
        for (int i = 0; i < d; i++) top = vmaxq_f32(top, vabsq_f32(vld1q_f32(q + static_cast<size_t>(i) * kLanes)));
        return top > 1e-30f ? 127.0f / top : Floats{};
    }
    static Floats weight_bound(const Floats* w) {
        Floats top = w[0];
        for (int k = 1; k < 8; k++) top = vmaxq_f32(top, w[k]);
        return top;
    }
    template <class C> static void expand_bytes(Operand op, const uint8_t* tile, int d, int offset, uint8_t* out) {
        const Table<C> t   = make_table<C>(offset);
        const auto     put = [](uint8_t* at, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) {
            const uint8x16_t v[4] = {a, b, c, e};
            for (int k = 0; k < 4; k++) vst1q_u8(at + 64 * k, v[k]);
        };
        if (op == Operand::K) {
            for (int block = 0; block < 16; block++) {
                uint8_t* const at = out + static_cast<size_t>(block / 4) * d * 16 + block % 4 * 16;
                walk_k<C>(
                    tile, block, d / 32,
                    t, [&](int g, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                        put(at + 512 * g + 64 * i, a, b, c, e);
                    });
            }
        } else {
            for (int n = 0; n < d / 4; n++) {
                const int      quarter = nth_part<C>(n, d / 4, 4);
                uint8_t* const at      = out + static_cast<size_t>(quarter / 4) * 1024 + quarter % 4 * 16;
                walk_v<C>(
                    tile, quarter, d / 4,
                    t, [&](int s, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                        put(at + 512 * s + 64 * i, a, b, c, e);
                    });
            }
        }
    }
    static void transpose(Floats* r) {
        const float32x4_t a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]), c = vtrn1q_f32(r[2], r[3]), e = vtrn2q_f32(r[2], r[3]);
        r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
        r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(e));
        r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
        r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(e));
    }

    // ---- expansion to f32

    // Bytes of four neighbours (dims of K, tokens of V) -> one f32 vector each.
    static float32x4_t byte_lane(uint8x16_t x, int b) {
        return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u8(x), vdupq_n_s32(24 - 8 * b)), 24));
    }
    template <class C> static void expand_k(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C> t = make_table<C>(0);
        float          scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        for (int block = 0; block < 16; block++) {
            const float32x4_t s = vmulq_n_f32(vld1q_f32(scale + 4 * block), unit_of(f));
            walk_k<C>(
                tile, block, d / 32,
                t, [&](int g, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    const uint8x16_t v[4] = {a, b, c, e};
                    for (int x = 0; x < 16; x++)
                        vst1q_f32(out + static_cast<size_t>(32 * g + 4 * i + x) * kTileTokens + 4 * block,
                                  vmulq_f32(byte_lane(v[x / 4], x % 4), s));
                });
        }
    }
    template <class C> static void expand_v(const Format& f, const uint8_t* tile, int d, float* out) {
        const Table<C> t = make_table<C>(0);
        float          scale[kTileTokens];
        load_halves(tile_scales(f, d, tile), scale);
        const float unit = unit_of(f);
        for (int i = 0; i < kTileTokens; i++) scale[i] *= unit;
        for (int n = 0; n < d / 4; n++) {
            const int quarter = nth_part<C>(n, d / 4, 4);
            walk_v<C>(
                tile, quarter, d / 4,
                t, [&](int s, int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    const uint8x16_t v[4] = {a, b, c, e};
                    for (int x = 0; x < 16; x++) {
                        const int token = 32 * s + 4 * i + x;
                        vst1q_f32(out + static_cast<size_t>(token) * d + 4 * quarter,
                                  vmulq_n_f32(byte_lane(v[x / 4], x % 4), scale[token]));
                    }
                });
        }
    }
    static float32x4_t halves4(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static void        expand_f16(Operand op, const uint8_t* tile, int d, float* out) {
               const uint16_t* row = reinterpret_cast<const uint16_t*>(tile);
               for (int t = 0; t < kTileTokens; t++, row += d)
            for (int i = 0; i < d; i += 4) {
                       const Floats x = halves4(row + i);
                       if (op == Operand::V) vst1q_f32(out + static_cast<size_t>(t) * d + i, x);
                else
                    for (int k = 0; k < 4; k++) out[static_cast<size_t>(i + k) * kTileTokens + t] = x[k];
            }
    }

    // ---- what Attention<Isa> calls

    static Floats half_vector(const uint16_t* p) { return halves4(p); }
    static void   load_halves(const uint16_t* p, float* out) {
          for (int i = 0; i < kTileTokens; i += 4) vst1q_f32(out + i, halves4(p + i));
    }
    static uint64_t equal_bits(const uint16_t* p, uint16_t half) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u)); // bit k of byte k of every eight
        uint8x16_t       m[4];
        for (int i = 0; i < 4; i++) {
            const uint16x8_t a = vceqq_u16(vld1q_u16(p + 16 * i), vdupq_n_u16(half)),
                             b = vceqq_u16(vld1q_u16(p + 16 * i + 8), vdupq_n_u16(half));
            m[i]               = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b)), bit);
        }
        const uint8x16_t sum = vpaddq_u8(vpaddq_u8(m[0], m[1]), vpaddq_u8(m[2], m[3]));
        return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sum, sum)), 0);
    }
};

} // namespace

const KernelTable& neon_kernels() {
    static const KernelTable table = {
        "neon",           neon_write.encode, neon_write.encode_rows,  neon_write.decode,       neon_write.forward, neon_write.inverse,
        neon_write.query, neon_write.output, Attention<Neon>::decode, Attention<Neon>::batched};
    return table;
}

} // namespace tightkv
