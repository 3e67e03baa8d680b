// The encoder, written once over the primitives of an ISA (struct Ops), so that every ISA gives the same bits:
//   void  hadamard(float* x, int n, const float* before, const float* after)   x *= before; butterflies from stride 1 upwards; x *= after
//   float sum_squares(const float* x, int d) 16 strided accumulators, folded 16 -> 8 -> 4 -> 2 -> 1; d % 16 == 0
//   int   code_levels(const float* y, int d, float to_fixed, const Codebook&, uint8_t* codes)   returns Σ level²
//   void  levels_of(const uint8_t* codes, int d, const Codebook&, float w, float* y)            y = w * level
//   int   code_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes)
//         the same by the best path (trellis.h); guess: codes it may well be, or null
//   void  trellis_levels_of(const uint8_t* codes, int d, int bits, float w, float* y)
//   void  round_to_half(float* x, int d)     x = f32(f16(x))
// Units that include this are compiled without contraction of a*b+c (cmake: -ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "codec/codebook_tables.h"
#include "codec/rotate.h"
#include "codec/row.h"
#include "codec/stable_range.h"
#include "codec/transform.h"
#include "codec/trellis.h"

namespace tightkv {
namespace { // one copy per ISA: never merged by the linker

inline float largest_magnitude(const float* x, int d) { // NaN gives NaN
    uint32_t top = 0;                                   // magnitudes of floats order like their bits
    for (int i = 0; i < d; i++) {
        const uint32_t m = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
        top              = m > top ? m : top;
    }
    return std::bit_cast<float>(top);
}

// y: transformed row, scaled by 2^-exponent. Decides codes and scale. guess: codes it may well have, or null.
template <class Ops>
RowStatus code_row(const Format& f, int d, const float* y, int exponent, CodedRow& row, int32_t& level_norm2, const uint8_t* guess) {
    const float norm2 = Ops::sum_squares(y, d);
    float       unit;
    level_norm2 = 0; // exact: at most 1024 * 127^2
    if (f.kind == FormatKind::Levels) {
        const Codebook& book = codebook(f.bits);
        unit                 = book.unit;
        level_norm2 = Ops::code_levels(y, d, kThresholdSteps * std::sqrt(static_cast<float>(d)) / std::sqrt(norm2), book, row.codes);
    } else if (f.kind == FormatKind::Trellis) {
        unit = trellis(f.bits).unit;
        level_norm2 =
            Ops::code_trellis(y, d, kTrellisSteps * std::sqrt(static_cast<float>(d)) / std::sqrt(norm2), f.bits, guess, row.codes);
    } else {
        unit                = kUniformUnit;
        const float to_code = 127.0f / largest_magnitude(y, d);
        for (int i = 0; i < d; i++) {
            const int c = static_cast<int>(std::nearbyint(y[i] * to_code));
            level_norm2 += c * c;
            row.codes[i] = static_cast<uint8_t>(c);
        }
    }
    float scale = std::sqrt(norm2) / (unit * std::sqrt(static_cast<float>(level_norm2)));
    if (exponent != 0) scale = std::ldexp(scale, exponent);
    row.scale = float_to_half(scale);
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
        Ops::levels_of(row.codes, d, codebook(f.bits), s * codebook(f.bits).unit, x);
    } else if (f.kind == FormatKind::Trellis) {
        Ops::trellis_levels_of(row.codes, d, f.bits, s * trellis(f.bits).unit, x);
    } else {
        const float w = s * kUniformUnit;
        for (int i = 0; i < d; i++) x[i] = w * static_cast<float>(static_cast<int8_t>(row.codes[i]));
    }
    inverse<Ops>(t, x);
}

template <class Ops>
RowStatus encode_once(const Format& f, const Transform& t, float* x, CodedRow& row, int32_t& level_norm2, const uint8_t* guess) {
    const int d = t.head_dim();
    subtract_mean(t, x); // of finite values; a difference that overflows is refused like any other
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
        rotate<Ops>(t, x);
        status = code_row<Ops>(f, d, x, exponent, row, level_norm2, guess);
    }
    if (top == 0 || row.scale == 0) std::memset(row.codes, 0, d), row.scale = 0;
    return status;
}

inline bool same_row(const CodedRow& a, const CodedRow& b, int d) { return a.scale == b.scale && std::memcmp(a.codes, b.codes, d) == 0; }

// What the encoder makes of the f16 row that `row` decodes to. False: nothing that a row could be.
template <class Ops> bool encode_again(const Format& f, const Transform& t, const CodedRow& row, CodedRow& again, float* work) {
    int32_t level_norm2 = 0;
    decode<Ops>(f, t, row, work);
    Ops::round_to_half(work, t.head_dim());
    return encode_once<Ops>(f, t, work, again, level_norm2, row.codes) == RowStatus::kOk;
}

// Beside a large mean the f16 rounding can move the scale by its last bit to and fro, for ever: the same few rows, of which the one with
// the smallest scale (then codes) stands for all. Rows that do not come round soon are left alone.
template <class Ops> void settle_cycle(const Format& f, const Transform& t, CodedRow& row, float* work) {
    const int d    = t.head_dim();
    CodedRow  best = row,
             next; // best since `row`, which moves on to 1, 3, 7, ... rounds from the start until it lies in the cycle (Brent 1980)
    CodedRow at = row;
    for (int round = 1, length = 1; round <= 128; round++) {
        if (!encode_again<Ops>(f, t, at, next, work)) return;
        if (same_row(next, row, d)) {
            row = best;
            return;
        }
        if (next.scale < best.scale || (next.scale == best.scale && std::memcmp(next.codes, best.codes, d) < 0)) best = next;
        at = next;
        if (round == 2 * length - 1) row = best = at, length *= 2;
    }
}

// From the first encoding on towards the fixed point. Rows with nearly all their norm in one transformed coordinate need a second round,
// seldom a third; the bound only keeps a row that f16 cannot hold (overflow, subnormal scale) from going round for ever. Trellis codes of
// such rows take up to a dozen.
template <class Ops> void settle(const Format& f, const Transform& t, CodedRow& row, float* work) {
    const int most = f.kind == FormatKind::Trellis ? 40 : 8;
    CodedRow  again;
    for (int round = 0; round < most; round++) {
        if (!encode_again<Ops>(f, t, row, again, work) || same_row(again, row, t.head_dim())) return;
        std::memcpy(row.codes, again.codes, t.head_dim()), row.scale = again.scale;
    }
    if (!t.plain()) settle_cycle<Ops>(f, t, row, work);
}

// Any row of any format.
template <class Ops> RowStatus encode_any(const Format& f, const Transform& t, const float* x, CodedRow& row) {
    alignas(64) float work[kMaxHeadDim];
    int32_t           level_norm2 = 0;
    std::memcpy(work, x, sizeof(float) * t.head_dim());
    const RowStatus status = encode_once<Ops>(f, t, work, row, level_norm2, nullptr);
    if (status == RowStatus::kOk && row.scale != 0) settle<Ops>(f, t, row, work);
    return status;
}

// Up to Most rows of levels under plain transforms, of one head_dim: the same as encode_any(). A row is a chain of steps that wait
// for each other, so every step is done for all rows; and most rows are not encoded a second time.
//
// Is a row its own encoding for certain? A cheap answer to what settle() would find: re-encoded, every value lies at level * unit *
// sqrt(d)/(unit |level|) of the row's deviation, off by the f16 rounding of the decoded row, which is at most 2^-11 of the row's norm, plus
// as much again of 4 deviations for the norm itself (codes above that saturate). If that leaves every level in its cell, a range of
// |level|² that is tabled, the codes repeat. The scale repeats if the norm of the rounded row, give or take the rounding of f32 sums, gives
// it. A mean or a dense matrix changes what f16 does to a row: no cheap answer then.
template <class Ops, int Most>
void encode_levels(const Format& f, int n, const Transform* const* t, const float* const* x, CodedRow* const* row, RowStatus* status) {
    const int          d     = t[0]->head_dim();
    const Codebook&    book  = codebook(f.bits);
    const StableRange& range = stable_range(f.bits, d);
    const float        fixed = kThresholdSteps * std::sqrt(static_cast<float>(d));
    alignas(64) float  work[Most][kMaxHeadDim];
    float              norm[Most], level_norm[Most], scale[Most];
    int32_t            level_norm2[Most];
    bool               ordinary[Most], stable[Most];
    for (int r = 0; r < n; r++) {
        const float top = largest_magnitude(x[r], d);
        ordinary[r]     = top > 0x1p-40f && top < 0x1p40f; // squares stay in range
        if (ordinary[r]) std::memcpy(work[r], x[r], sizeof(float) * static_cast<size_t>(d));
        else
            for (int i = 0; i < d; i++) work[r][i] = 1.0f; // coded below by itself
    }
    for (int r = 0; r < n; r++) rotate<Ops>(*t[r], work[r]);
    for (int r = 0; r < n; r++) norm[r] = std::sqrt(Ops::sum_squares(work[r], d));
    for (int r = 0; r < n; r++) level_norm2[r] = Ops::code_levels(work[r], d, fixed / norm[r], book, row[r]->codes);
    for (int r = 0; r < n; r++) {
        level_norm[r] = book.unit * std::sqrt(static_cast<float>(level_norm2[r]));
        row[r]->scale = float_to_half(norm[r] / level_norm[r]);
        scale[r]      = half_to_float(row[r]->scale);
        stable[r]     = level_norm2[r] >= range.least && level_norm2[r] <= range.most && scale[r] > 0x1p-10f &&
                    scale[r] < 1024.0f; // f16 over- and underflow
    }
    for (int r = 0; r < n; r++) Ops::levels_of(row[r]->codes, d, book, scale[r] * book.unit, work[r]);
    for (int r = 0; r < n; r++) inverse<Ops>(*t[r], work[r]);
    for (int r = 0; r < n; r++) {
        Ops::round_to_half(work[r], d);
        norm[r] = std::sqrt(Ops::sum_squares(work[r], d));
    }
    for (int r = 0; r < n; r++) {
        const float again = norm[r] / level_norm[r];
        // f32: (log2 d + 2) roundings of the transform and d/16 + 4 of the sum, each 2^-24
        const float doubt = again * 1e-5f;
        stable[r] &= float_to_half(again - doubt) == row[r]->scale && float_to_half(again + doubt) == row[r]->scale;
    }
    for (int r = 0; r < n; r++) {
        status[r] = RowStatus::kOk;
        if (!ordinary[r] || row[r]->scale == 0 || row[r]->scale > kHalfMax) status[r] = encode_any<Ops>(f, *t[r], x[r], *row[r]);
        else if (!stable[r]) settle<Ops>(f, *t[r], *row[r], work[r]);
    }
}

// The whole write path of up to kEncodeRows rows of one head_dim, codes only: [n] transforms, rows x [d], kept, and where codes and status
// go.
template <class Ops>
void encode_rows(const Format& f, int n, const Transform* const* t, const float* const* x, CodedRow* const* row, RowStatus* status) {
    bool plain = f.kind == FormatKind::Levels;
    for (int r = 0; r < n; r++) plain &= t[r]->plain();
    if (plain) return n == 1 ? encode_levels<Ops, 1>(f, 1, t, x, row, status) : encode_levels<Ops, kEncodeRows>(f, n, t, x, row, status);
    for (int r = 0; r < n; r++) status[r] = encode_any<Ops>(f, *t[r], x[r], *row[r]);
}

template <class Ops> RowStatus encode(const Format& f, const Transform& t, const float* x, CodedRow& row) {
    const Transform* const transform = &t;
    CodedRow* const        at        = &row;
    RowStatus              status;
    encode_rows<Ops>(f, 1, &transform, &x, &at, &status);
    return status;
}

} // namespace
} // namespace tightkv
