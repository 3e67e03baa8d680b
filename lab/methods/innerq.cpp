#include "lab/methods/innerq.h"

#include <algorithm>
#include <cmath>

#include "lab/methods/affine.h"
#include "lab/methods/methods.h"

namespace tightkv::lab {

namespace {

constexpr size_t kTokens = kGroup;

class Keys : public HeadMethod {
public:
    Keys(int bits, std::vector<float> factors) : bits_(bits), factors_(std::move(factors)) {}
    size_t first_changed(size_t first_new) const override { return first_new - std::min(first_new, kRecent); }
    void   roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const override {
        std::copy(rows.begin(), rows.end(), seen.begin());
        const size_t d = factors_.size(), n = rows.size() / d;
        for (size_t t = 0; t + kRecent < n; t++) {
              if (begin + t < kSinks) continue;
            float* row = &seen[t * d];
              for (size_t c = 0; c < d; c++) row[c] /= factors_[c];
            for (size_t c = 0; c < d; c += kGroup) code_better(row + c, kGroup, 1, bits_);
            for (size_t c = 0; c < d; c++) row[c] *= factors_[c];
        }
    }

private:
    int                bits_;
    std::vector<float> factors_;
};

class Values : public HeadMethod {
public:
    Values(int bits, int head_dim) : bits_(bits), head_dim_(static_cast<size_t>(head_dim)) {}
    size_t first_changed(size_t first_new) const override { return first_new / kTokens * kTokens; }
    void   roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const override {
        std::copy(rows.begin(), rows.end(), seen.begin());
        const size_t n = rows.size() / head_dim_;
        for (size_t t = 0; t + kTokens <= n; t += kTokens) {
              const size_t sinks = begin + t == 0 ? kSinks : 0;
              for (size_t c = 0; c < head_dim_; c++) code_better(&seen[(t + sinks) * head_dim_ + c], kTokens - sinks, head_dim_, bits_);
        }
    }

private:
    int    bits_;
    size_t head_dim_;
};

class InnerQ : public Method {
public:
    InnerQ(int bits, bool one_vector) : bits_(bits), one_vector_(one_vector) {}
    bool needs_samples() const override { return true; }
    Bits bits(Operand operand, int d) const override {
        const double row   = (bits_ + kGroupBits / kGroup) * d;
        const double exact = double(kSinks) + (operand == Operand::key ? double(kRecent) : (kTokens - 1) / 2.0); // rows, on average
        return {.row = row, .sequence = exact * (16 * d - row), .model = operand == Operand::key ? 16.0 * d : 0};
    }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t head) const override {
        if (layer.operand == Operand::value) return std::make_unique<Values>(bits_, layer.head_dim);
        std::vector<float> factors = channel_factors(layer.heads[head].rows, layer.head_dim);
        if (one_vector_)
            for (const HeadSamples& h : layer.heads) {
                const std::vector<float> other = channel_factors(h.rows, layer.head_dim);
                for (size_t c = 0; c < factors.size(); c++) factors[c] = std::max(factors[c], other[c]);
            }
        return std::make_unique<Keys>(bits_, std::move(factors));
    }

private:
    int  bits_;
    bool one_vector_;
};

} // namespace

std::vector<float> channel_factors(std::span<const float> rows, int d) {
    std::vector<float> f(static_cast<size_t>(d), 0.0f);
    for (size_t i = 0; i < rows.size(); i++) f[i % f.size()] = std::max(f[i % f.size()], std::abs(rows[i]));
    for (float& x : f) x = x > 0 ? std::sqrt(x) : 1.0f;
    return f;
}

std::unique_ptr<Method> make_innerq(int bits, bool one_vector) { return std::make_unique<InnerQ>(bits, one_vector); }

} // namespace tightkv::lab
