// lab:turbo2 … turbo4: the formats of this project through the harness of the lab. Not a rival but the control: what differs from the
// figures of the same caches in the adapter is the harness (attention on decoded f16 rows instead of codes).
#include "lab/methods/coded_rows.h"

#include "lab/methods/methods.h"

namespace tightkv::lab {

const Format& turbo_format(int bits) { return format(bits == 2 ? FormatId::turbo2 : bits == 3 ? FormatId::turbo3 : FormatId::turbo4); }

Matrix transposed(const Matrix& m, int d) {
    Matrix     t(m.size());
    const auto n = static_cast<size_t>(d);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) t[j * n + i] = m[i * n + j];
    return t;
}

Matrix hadamard_matrix(int d) {
    const auto n = static_cast<size_t>(d);
    Matrix     columns(n * n); // row j: the image of unit vector j
    for (size_t j = 0; j < n; j++) {
        columns[j * n + j] = 1;
        transform_for(d).forward(&columns[j * n]);
    }
    return transposed(columns, d);
}

void CodedRows::roundtrip(size_t, std::span<const float> rows, std::span<float> seen) const {
    const auto d = static_cast<size_t>(transform_.head_dim());
    CodedRow   row;
    for (size_t at = 0; at < rows.size(); at += d) {
        encode_row(format_, transform_, &rows[at], row);
        decode_row(format_, transform_, row, &seen[at]);
    }
}

namespace {

class Turbo : public Method {
public:
    explicit Turbo(int bits) : bits_(bits) {}
    Bits                        bits(Operand, int d) const override { return {.row = coded_row_bits(bits_, d)}; }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t) const override {
        return std::make_unique<CodedRows>(bits_, transform_for(layer.head_dim));
    }

private:
    int bits_;
};

} // namespace

std::unique_ptr<Method> make_turbo(int bits) { return std::make_unique<Turbo>(bits); }

} // namespace tightkv::lab
