// What every ISA level's attention shares: the list of code kinds that kernels are made for, mask access and the plain expansion of one
// row. Included by ISA units, so everything here has internal linkage (a copy compiled for a newer ISA must never be the one the linker
// keeps).
#pragma once
#include <bit>
#include <cmath>

#include "base/half.h"
#include "base/softmax_state.h"
#include "codec/codebook_tables.h"
#include "codec/trellis.h"
#include "cpu/kernel_table.h"

namespace tightkv {
namespace {

// Of a mask of bits: which tokens row r sees of the tile that holds key j.
inline uint64_t mask_word(const AttendArgs& a, int r, int j) {
    return static_cast<const uint64_t*>(a.mask[r])[j / kTileTokens * a.mask_step];
}

// Additive term of key j for row r.
inline float mask_value(const AttendArgs& a, int r, int j) {
    if (a.mask_type == MaskType::kNone) return 0.0f;
    if (a.mask_type == MaskType::kBits) return mask_word(a, r, j) >> (j % kTileTokens) & 1 ? 0.0f : kNegInf;
    const float m =
        a.mask_type == MaskType::kF16 ? half_to_float(static_cast<const uint16_t*>(a.mask[r])[j]) : static_cast<const float*>(a.mask[r])[j];
    return a.slope && m != kNegInf ? a.slope[r] * m : m;
}

// The codes that a kernel instance reads.
template <FormatKind Kind, int Bits> struct Codes {
    static constexpr int  bits    = Bits;
    static constexpr bool trellis = Kind == FormatKind::Trellis;
};
using ByteCodes = Codes<FormatKind::Uniform, 8>;

// The one list of instances: use(Codes<…>) for a format with codes, whose products are integer ones.
template <class Use> [[gnu::always_inline]] inline void with_codes(const Format& f, Use use) {
    if (f.kind == FormatKind::Uniform) {
        use(ByteCodes{});
    } else if (f.kind == FormatKind::Trellis) {
        if (f.bits == 2) use(Codes<FormatKind::Trellis, 2>{});
        else if (f.bits == 3) use(Codes<FormatKind::Trellis, 3>{});
        else use(Codes<FormatKind::Trellis, 4>{});
    } else {
        if (f.bits == 2) use(Codes<FormatKind::Levels, 2>{});
        else if (f.bits == 3) use(Codes<FormatKind::Levels, 3>{});
        else use(Codes<FormatKind::Levels, 4>{});
    }
}

// ---- trellis codes in a tile (codec/tile.h)

// Table of a unit's nibbles. A nibble holds the index of trellis.h rotated left by a phase:
//   3 bit: K: unit, V: unit + dword / 4    2 bit: even units 2, odd units 0 (the unpacks see to that)    4 bit: 0, the larger table
// phase: any, taken modulo 4.
inline void trellis_table(int bits, int phase, int offset, int8_t table[16]) {
    const int f = phase % 4;
    for (int x = 0; x < 16; x++)
        table[x] = static_cast<int8_t>(trellis(bits).table[static_cast<size_t>((x >> f | x << (4 - f)) & 15)] + offset);
}
constexpr int unit_phase(int bits, int unit) { return bits == 3 ? unit : bits == 2 ? 2 - unit % 2 * 2 : 0; }

// V is read in parts, a vector of the ISA each: per_group of them make a dim group of 16. The part that holds the predecessors of a part's
// first four dims (its last four dims are they).
inline int part_before(int part, int parts, int per_group) {
    if (part % per_group != 0) return part - 1;
    const int group = part / per_group, groups = parts / per_group;
    return (group >= 2 ? group - 2 : groups - 1 - group) * per_group + per_group - 1;
}
// The n-th part to read. The first two groups of trellis codes need the last two: they come last, so that memory is read in its order.
template <class C> inline int nth_part(int n, int parts, int per_group) {
    const int part = C::trellis ? n + 2 * per_group : n;
    return part < parts ? part : part - parts;
}

// K and V are two streams, each left alone while the other is read, and trellis codes are not quite read in the order of memory: what a
// processor fetches ahead by itself comes late (figures in docs/cpu.md). So every step of reading a tile fetches its share of the next one.
// share: where the step's share of this tile begins, or would begin if it were read in order.
template <class C, int Bytes> [[gnu::always_inline]] inline void fetch_next(const uint8_t* share, int head_dim) {
    const size_t step = static_cast<size_t>(head_dim) * kTileTokens * C::bits / 8 + kTileTokens * sizeof(uint16_t);
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(share + step + i);
}

// Value in standard deviations of int8 level 1, of a format with a transform.
inline float unit_of(const Format& f) {
    return f.kind == FormatKind::Uniform ? kUniformUnit : f.kind == FormatKind::Trellis ? trellis(f.bits).unit : codebook(f.bits).unit;
}

// The largest |x| as its bits, which are ordered as the values are, Inf and NaN above all: integers, because a maximum of floats does not
// vectorise.
inline uint32_t largest_bits(const float* x, int d) {
    uint32_t top = 0;
    for (int i = 0; i < d; i++) {
        const uint32_t e = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
        top              = e > top ? e : top;
    }
    return top;
}
inline constexpr uint32_t kInfBits = 0x7f800000u;

inline bool all_finite(const float* x, int d) { return largest_bits(x, d) < kInfBits; }

// int8 operand of a query where nothing saturates: the largest value becomes 127. Returns the step, q ~ step * q8.
inline float quantize_by_largest(const float* q, int d, int8_t* q8) {
    const uint32_t bits   = largest_bits(q, d);
    const float    top    = std::bit_cast<float>(bits);
    const bool     usable = bits < kInfBits && top > 1e-30f; // else the operand is zero; NaN and Inf are dealt with by the caller
    const float    inv    = usable ? 127.0f / top : 0.0f;
    for (int i = 0; i < d; i++) q8[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(usable ? q[i] * inv : 0.0f)));
    return usable ? top / 127.0f : 0.0f;
}

// The same of up to kMaxDecodeRows rows. Levels whose keys carry no offset of 128 leave minus aside.
struct ByteQueries {
    alignas(64) int8_t q[kMaxDecodeRows][kMaxHeadDim];
    int32_t minus[kMaxDecodeRows]; // -128 Σ q8
    float   step[kMaxDecodeRows];  // times the codebook's unit
};
inline void prepare_byte_queries(const float* q, int d, int rows, float unit, ByteQueries& out) {
    for (int r = 0; r < rows; r++) {
        out.step[r] = unit * quantize_by_largest(q + static_cast<size_t>(r) * d, d, out.q[r]);
        int32_t sum = 0;
        for (int i = 0; i < d; i++) sum += out.q[r][i];
        out.minus[r] = -128 * sum;
    }
}

// ---- precision: where one int8 query or one u8 weight per key is too coarse, a second pass adds what rounding took off (docs/kernels.md)

// turbo8 codes are as fine as the operands: two passes always.
inline bool always_twice(const Format& f) { return f.kind == FormatKind::Uniform; }

// A query needs a second pass when rounding it adds more than 0.1 dB to the noise of the keys' codes. Keys k of row scale s have
// coordinates of variance s², and codes that are off by D s² each (D: distortion, formats.md). Rounding with step max|q| / 127 shifts a
// score by Σ e_i k_i, of variance d step²/12 s²; the codes' noise shifts it by |q|² D s². So the query is too coarse where
//   max|q|² d / |q|² > (10^0.01 - 1) * 12 * 127² * D,
// that is when its largest coordinate exceeds 6.5 deviations at 4 bits (5.3 trellis), 12.5 (10.4) at 3, 23 (19) at 2: outliers, which
// Gaussian coordinates do not reach. Steps of avx2 are coarser for all queries (docs/kernels.md); an outlier is the same for them.
inline float query_peak_limit(const Format& f) {
    constexpr float kPerDistortion = 0.02329f * 12 * 127 * 127;
    if (always_twice(f)) return -1;
    const bool t = f.kind == FormatKind::Trellis;
    return kPerDistortion * (f.bits == 2 ? (t ? 0.0832f : 0.1175f) : f.bits == 3 ? (t ? 0.0239f : 0.0345f) : (t ? 0.00627f : 0.00951f));
}

// The weights of a tile need one when rounding takes mass off them, Σ (w - step * w8), that exceeds kLostMass of the row's running
// denominator and is more than kLostSteps. Mass and denominator are counted in the weights' units, with the row scales of V, so that they
// do not depend on how large values are. Keys far below the tile's largest are all rounded to the same side, at worst to zero, and what
// their values have in common is lost: up to half a step for each, 32 steps or an eighth of the tile's largest weight.
// Independent errors are no reason: 64 of them shift the sum by sqrt(64 / 12) = 2.3 steps, and 8 steps, 3.5 deviations, are 1/32 of the
// largest weight, whose value brings along ten times that power as noise of its 4-bit code (D = 0.0095). Without kLostSteps the first
// tiles of every run, with a small denominator yet, would be taken twice for nothing (docs/cpu.md, Dead ends).
inline constexpr float kLostMass = 1e-3f, kLostSteps = 8;

// A query with NaN or Inf has no integer operand; its row, and only its row, answers NaN as f32 arithmetic would.
inline void poison_rows(const AttendArgs& a, const AttendState& s) {
    for (int r = 0; r < a.rows; r++)
        if (!all_finite(a.q + static_cast<size_t>(r) * a.k.head_dim, a.k.head_dim)) {
            s.m[r] = 0.0f, s.l[r] = __builtin_nanf("");
            for (int i = 0; i < a.v.head_dim; i++) s.o[static_cast<size_t>(r) * a.v.head_dim + i] = __builtin_nanf("");
        }
}

// Row j in the domain the kernel works in: [head_dim], transformed values (f16 rows: the values themselves).
inline void transformed_row(const TileRun& run, Operand op, int j, float* x) {
    const int      d    = run.head_dim;
    const uint8_t* tile = run.tiles + tile_bytes(run.format, d) * static_cast<size_t>(j / kTileTokens);
    if (!run.format.transformed()) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(tile) + static_cast<size_t>(j % kTileTokens) * d;
        for (int i = 0; i < d; i++) x[i] = half_to_float(row[i]);
        return;
    }
    CodedRow row;
    tile_get(run.format, op, d, tile, j % kTileTokens, row);
    const float s = half_to_float(row.scale);
    if (run.format.kind == FormatKind::Uniform) {
        for (int i = 0; i < d; i++) x[i] = s * kUniformUnit * static_cast<float>(static_cast<int8_t>(row.codes[i]));
    } else if (run.format.kind == FormatKind::Trellis) {
        int8_t level[kMaxHeadDim];
        trellis_levels(trellis(run.format.bits), d, row.codes, level);
        for (int i = 0; i < d; i++) x[i] = s * trellis(run.format.bits).unit * static_cast<float>(level[i]);
    } else {
        const Codebook& book = codebook(run.format.bits);
        for (int i = 0; i < d; i++) x[i] = s * book.unit * static_cast<float>(book.level[row.codes[i]]);
    }
}

} // namespace
} // namespace tightkv
