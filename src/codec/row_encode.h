// The encoder, written once over four primitives of an ISA (struct Ops), so that every ISA gives the same bits:
//   void  fwht(float* x, int n)              butterflies from stride 1 upwards
//   float sum_squares(const float* x, int d) 16 strided accumulators, folded 16 -> 8 -> 4 -> 2 -> 1; d % 16 == 0
//   void  code_levels(const float* y, int d, float to_fixed, const Codebook&, uint8_t* codes)
//   void  round_to_half(float* x, int d)     x = f32(f16(x))
// Units that include this are compiled without contraction of a*b+c (cmake: -ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "codec/codebook_tables.h"
#include "codec/row.h"
#include "codec/transform.h"

namespace tightkv {
namespace { // one copy per ISA: never merged by the linker

template <class Ops> void forward(const Transform& t, float* x) {
    const int d = t.head_dim();
    for (int i = 0; i < d; i++) x[i] *= t.pre()[i];
    int at = 0;
    for (int n : t.blocks()) Ops::fwht(x + at, n), at += n;
    for (int i = 0; i < d; i++) x[i] *= t.post()[i];
}

template <class Ops> void inverse(const Transform& t, float* y) {
    const int d = t.head_dim();
    for (int i = 0; i < d; i++) y[i] *= t.post()[i];
    int at = 0;
    for (int n : t.blocks()) Ops::fwht(y + at, n), at += n;
    for (int i = 0; i < d; i++) y[i] *= t.pre()[i];
}

inline float largest_magnitude(const float* x, int d) { // NaN gives NaN
    uint32_t top = 0;                                   // magnitudes of floats order like their bits
    for (int i = 0; i < d; i++) {
        const uint32_t m = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
        top              = m > top ? m : top;
    }
    return std::bit_cast<float>(top);
}

// y: transformed row, scaled by 2^-exponent. Decides codes and scale.
template <class Ops> RowStatus code_row(const Format& f, int d, const float* y, int exponent, CodedRow& row) {
    const float norm2       = Ops::sum_squares(y, d);
    int32_t     level_norm2 = 0; // exact: at most 1024 * 127^2
    float       unit;
    if (f.kind == FormatKind::Levels) {
        const Codebook& book = codebook(f.bits);
        unit                 = book.unit;
        Ops::code_levels(y, d, kThresholdSteps * std::sqrt(static_cast<float>(d)) / std::sqrt(norm2), book, row.codes);
        for (int i = 0; i < d; i++) level_norm2 += book.level[row.codes[i]] * book.level[row.codes[i]];
    } else {
        unit                = kUniformUnit;
        const float to_code = 127.0f / largest_magnitude(y, d);
        for (int i = 0; i < d; i++) {
            const int c = static_cast<int>(std::nearbyint(y[i] * to_code));
            level_norm2 += c * c;
            row.codes[i] = static_cast<uint8_t>(c);
        }
    }
    const float scale = std::ldexp(std::sqrt(norm2) / (unit * std::sqrt(static_cast<float>(level_norm2))), exponent);
    row.scale         = float_to_half(scale);
    if (row.scale > kHalfMax) {
        row.scale = kHalfMax;
        return RowStatus::kSaturated;
    }
    return RowStatus::kOk;
}

template <class Ops> void decode(const Format& f, const Transform& t, const CodedRow& row, float* x) {
    const int   d = t.head_dim();
    const float s = half_to_float(row.scale);
    if (f.kind == FormatKind::Levels) {
        const Codebook& book = codebook(f.bits);
        const float     w    = s * book.unit;
        for (int i = 0; i < d; i++) x[i] = w * static_cast<float>(book.level[row.codes[i]]);
    } else {
        const float w = s * kUniformUnit;
        for (int i = 0; i < d; i++) x[i] = w * static_cast<float>(static_cast<int8_t>(row.codes[i]));
    }
    inverse<Ops>(t, x);
}

template <class Ops> RowStatus encode_once(const Format& f, const Transform& t, float* x, CodedRow& row) {
    const int   d   = t.head_dim();
    const float top = largest_magnitude(x, d);
    if (!(top < __builtin_inff())) {
        std::memset(row.codes, 0, d), row.scale = 0;
        return RowStatus::kRefused;
    }
    int exponent = 0;
    if (top != 0 && (top > 0x1p40f || top < 0x1p-40f)) { // keep squares in range; a power of two changes no rounding
        exponent = std::ilogb(top);
        for (int i = 0; i < d; i++) x[i] = std::ldexp(x[i], -exponent);
    }
    RowStatus status = RowStatus::kOk;
    if (top != 0) {
        forward<Ops>(t, x);
        status = code_row<Ops>(f, d, x, exponent, row);
    }
    if (top == 0 || row.scale == 0) std::memset(row.codes, 0, d), row.scale = 0;
    return status;
}

// The whole write path of one row, codes only. x: [d], kept.
template <class Ops> RowStatus encode(const Format& f, const Transform& t, const float* x, CodedRow& row) {
    const int         d = t.head_dim();
    alignas(64) float work[kMaxHeadDim];
    std::memcpy(work, x, sizeof(float) * d);
    const RowStatus status = encode_once<Ops>(f, t, work, row);
    if (status != RowStatus::kOk || row.scale == 0) return status;
    // Towards the fixed point. Rows with nearly all their norm in one transformed coordinate need a second round, seldom a third;
    // the bound only keeps a row that f16 cannot hold (overflow, subnormal scale) from going round for ever.
    for (int round = 0; round < 8; round++) {
        CodedRow again;
        decode<Ops>(f, t, row, work);
        Ops::round_to_half(work, d);
        if (encode_once<Ops>(f, t, work, again) != RowStatus::kOk) break;
        if (again.scale == row.scale && std::memcmp(again.codes, row.codes, d) == 0) break;
        std::memcpy(row.codes, again.codes, d), row.scale = again.scale;
    }
    return status;
}

} // namespace
} // namespace tightkv
