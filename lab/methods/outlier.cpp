#include "lab/methods/outlier.h"

#include <algorithm>
#include <numeric>

#include "lab/methods/coded_rows.h"
#include "lab/methods/methods.h"

namespace tightkv::lab {

std::vector<size_t> outlier_channels(std::span<const float> rows, int head_dim) {
    const auto          d = static_cast<size_t>(head_dim);
    std::vector<double> square(d, 0.0);
    for (size_t i = 0; i < rows.size(); i++) square[i % d] += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
    std::vector<size_t> order(d);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return square[a] > square[b]; });
    order.resize(d / 2);
    std::sort(order.begin(), order.end());
    return order;
}

namespace {

class Split : public HeadMethod {
public:
    Split(int bits, int head_dim, const std::vector<size_t>& outliers)
        : head_dim_(static_cast<size_t>(head_dim)), more_(bits + 1, transform_for(head_dim / 2)), less_(bits, transform_for(head_dim / 2)) {
        channels_[0] = outliers;
        for (size_t c = 0; c < head_dim_; c++)
            if (!std::binary_search(outliers.begin(), outliers.end(), c)) channels_[1].push_back(c);
    }
    void roundtrip(size_t, std::span<const float> rows, std::span<float> seen) const override {
        std::vector<float> part(head_dim_ / 2), coded(head_dim_ / 2);
        for (size_t at = 0; at < rows.size(); at += head_dim_)
            for (const int k : {0, 1}) {
                const std::vector<size_t>& channels = channels_[k];
                for (size_t i = 0; i < part.size(); i++) part[i] = rows[at + channels[i]];
                (k == 0 ? more_ : less_).roundtrip(0, part, coded);
                for (size_t i = 0; i < part.size(); i++) seen[at + channels[i]] = coded[i];
            }
    }

private:
    size_t              head_dim_;
    CodedRows           more_, less_;
    std::vector<size_t> channels_[2]; // outliers, the rest
};

class Outlier : public Method {
public:
    explicit Outlier(int bits) : bits_(bits) {}
    bool        needs_samples() const override { return true; }
    std::string refusal(int d) const override { return d % 64 ? "head_dim " + std::to_string(d) + "; accepted: multiples of 64" : ""; }
    Bits        bits(Operand, int d) const override { // one bit a channel says which are outliers
        return {.row = coded_row_bits(bits_ + 1, d / 2) + coded_row_bits(bits_, d / 2), .model = double(d)};
    }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t head) const override {
        return std::make_unique<Split>(bits_, layer.head_dim, outlier_channels(layer.heads[head].rows, layer.head_dim));
    }

private:
    int bits_;
};

} // namespace

std::unique_ptr<Method> make_outlier(int bits) { return std::make_unique<Outlier>(bits); }

} // namespace tightkv::lab
