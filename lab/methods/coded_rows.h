// Rows coded by the codec itself (transform, Lloyd-Max codes, one norm-keeping fp16 scale; src/codec/row.h) with a transform of the
// method's own: what "with turbo3 codes" means in the lab.
#pragma once
#include <vector>

#include "codec/row.h"
#include "codec/transform.h"
#include "lab/methods/method.h"

namespace tightkv::lab {

const Format& turbo_format(int bits); // 2, 3 or 4

// Square matrices are [d][d], row-major.
using Matrix = std::vector<float>;
Matrix transposed(const Matrix& m, int d);
Matrix hadamard_matrix(int d); // the codec's randomised Hadamard transform

class CodedRows : public HeadMethod {
public:
    CodedRows(int bits, Transform transform) : format_(turbo_format(bits)), transform_(std::move(transform)) {}
    void roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const override;

private:
    const Format& format_;
    Transform     transform_;
};

// Bits of such a row: codes and scale.
inline double coded_row_bits(int bits, int head_dim) { return bits * head_dim + 16; }

} // namespace tightkv::lab
