#include "lab/methods/kivi.h"

#include <algorithm>

#include "lab/methods/methods.h"

namespace tightkv::lab {

void KiviKeys::roundtrip(size_t, std::span<const float> rows, std::span<float> seen) const {
    std::copy(rows.begin(), rows.end(), seen.begin()); // rows begin with a group
    const size_t group = kTokensOfGroup * head_dim_;
    for (size_t at = 0; at + group <= seen.size(); at += group) code_group(&seen[at]);
}

void KiviKeys::code_group(float* group) const { code_channels(group, 0, head_dim_); }

void KiviKeys::code_channels(float* group, size_t from, size_t to) const {
    for (size_t c = from; c < to; c++) code_asymmetric(group + c, kTokensOfGroup, head_dim_, bits_);
}

namespace {

class KiviValues : public HeadMethod {
public:
    KiviValues(int bits, int head_dim) : bits_(bits), head_dim_(static_cast<size_t>(head_dim)) {}
    size_t first_changed(size_t first_new) const override { return first_new - std::min(first_new, kNewest); }
    void   roundtrip(size_t, std::span<const float> rows, std::span<float> seen) const override {
        std::copy(rows.begin(), rows.end(), seen.begin());
        const size_t n = rows.size() / head_dim_;
        for (size_t t = 0; t + kNewest < n; t++)
            for (size_t c = 0; c < head_dim_; c += kGroup) code_asymmetric(&seen[t * head_dim_ + c], kGroup, 1, bits_);
    }

private:
    int    bits_;
    size_t head_dim_;
};

class Kivi : public Method {
public:
    explicit Kivi(int bits) : bits_(bits) {}
    Bits                        bits(Operand operand, int d) const override { return kivi_bits(operand, bits_, d); }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t) const override {
        if (layer.operand == Operand::value) return make_kivi_values(bits_, layer.head_dim);
        return std::make_unique<KiviKeys>(bits_, layer.head_dim);
    }

private:
    int bits_;
};

} // namespace

// 1 bit a value for scale and zero. An unfinished group of keys has 15.5 rows on average.
Bits kivi_bits(Operand operand, int bits, int head_dim) {
    const double row = (bits + kGroupBits / kGroup) * head_dim;
    return {.row = row, .sequence = (operand == Operand::key ? (kTokensOfGroup - 1) / 2.0 : double(kNewest)) * (16 * head_dim - row)};
}

std::unique_ptr<HeadMethod> make_kivi_values(int bits, int head_dim) { return std::make_unique<KiviValues>(bits, head_dim); }

std::unique_ptr<Method> make_kivi(int bits) { return std::make_unique<Kivi>(bits); }

} // namespace tightkv::lab
