// One row (a K or V vector of one head and one token) on the write path: transform, codes, scale; and back.
//
// Canonical row bytes, the serialisation of record (format version 1):
//   turbo2/3/4   bytes 0-1: scale, fp16, little endian, in standard deviations of the transformed row
//                then the codes as one little-endian bit string: code i occupies bits [i*b, (i+1)*b)
//   turbo8       bytes 0-1: scale; then one int8 code per value
//   f16          the values, fp16, little endian; nothing else
// Value of code c at position i of the transformed row: scale * unit * level[c]; the row itself is T^-1 of that.
// The scale keeps the norm: scale = |y| / (unit * |level(codes)|)  (norm correction of DRIVE, Vargaftik et al. 2021).
// An all-zero row is all zero bytes, and so is a row too small for an fp16 scale and a refused one.
//
// encode is a projection: encode(f16(decode(row))) == row bit for bit, as long as the decoded values are finite in f16 and
// the scale is no subnormal fp16 (with a mean: as long as f16 holds rows of its size to better than a cell of the codebook). The encoder
// makes sure itself: it re-encodes what it would decode to and keeps the result of that, until nothing changes (almost every row is stable
// at once).
#pragma once
#include <cstddef>
#include <cstdint>

#include "codec/format.h"
#include "codec/transform.h"

namespace tightkv {

enum class RowStatus : uint8_t {
    kOk,
    kRefused,   // holds NaN or Inf: stored as zeros
    kSaturated, // deviation above the largest fp16: scale held at 65504
};

// A row between transform and packing. turbo8 codes are int8 in the same bytes.
struct CodedRow {
    uint8_t  codes[kMaxHeadDim];
    uint16_t scale; // fp16
};

inline constexpr int kEncodeRows = 4; // rows that an encoder takes at once

// Scalar reference; the cpu/ encoders give the same bits. x: [d], not f16 format. Thread-safe.
RowStatus encode_row(const Format& f, const Transform& t, const float* x, CodedRow& row);
void      decode_row(const Format& f, const Transform& t, const CodedRow& row, float* x);
// With the transform that every model has without a profile.
RowStatus encode_row(const Format& f, int head_dim, const float* x, CodedRow& row);
void      decode_row(const Format& f, int head_dim, const CodedRow& row, float* x);

// Canonical bytes (f.row_bytes(head_dim) of them), for formats with a transform.
void pack_row(const Format& f, int head_dim, const CodedRow& row, uint8_t* bytes);
void unpack_row(const Format& f, int head_dim, const uint8_t* bytes, CodedRow& row);

} // namespace tightkv
