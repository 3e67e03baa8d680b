#include "lab/methods/qjl.h"

#include <cmath>
#include <numbers>
#include <random>

#include "base/half.h"
#include "lab/methods/coded_rows.h"
#include "lab/methods/methods.h"

namespace tightkv::lab {

std::vector<float> gaussian_matrix(int rows, int columns, uint64_t seed) {
    std::mt19937_64                 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float>              s(static_cast<size_t>(rows) * static_cast<size_t>(columns));
    for (float& v : s) v = normal(random);
    return s;
}

void sketch_residual(const std::vector<float>& s, std::span<float> r) {
    const size_t d = r.size(), m = s.size() / d;
    double       norm = 0;
    for (const float v : r) norm += static_cast<double>(v) * static_cast<double>(v);
    const auto          length = static_cast<double>(half_to_float(float_to_half(static_cast<float>(std::sqrt(norm)))));
    const double        factor = std::sqrt(std::numbers::pi / 2) / static_cast<double>(m) * length;
    std::vector<double> sum(d, 0.0);
    for (size_t i = 0; i < m; i++) {
        double dot = 0;
        for (size_t j = 0; j < d; j++) dot += static_cast<double>(s[i * d + j]) * static_cast<double>(r[j]);
        for (size_t j = 0; j < d; j++) sum[j] += std::copysign(static_cast<double>(s[i * d + j]), dot * static_cast<double>(s[i * d + j]));
    }
    for (size_t j = 0; j < d; j++) r[j] = static_cast<float>(factor * sum[j]);
}

namespace {

constexpr uint64_t kSeed = 0x716a6cull; // "qjl"

class Keys : public HeadMethod {
public:
    Keys(int bits, int d) : codes_(bits, transform_for(d)), sketch_(gaussian_matrix(d, d, kSeed)), head_dim_(static_cast<size_t>(d)) {}
    void roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const override {
        codes_.roundtrip(begin, rows, seen);
        std::vector<float> r(head_dim_);
        for (size_t at = 0; at < rows.size(); at += head_dim_) {
            for (size_t i = 0; i < head_dim_; i++) r[i] = rows[at + i] - seen[at + i];
            sketch_residual(sketch_, r);
            for (size_t i = 0; i < head_dim_; i++) seen[at + i] += r[i];
        }
    }

private:
    CodedRows          codes_;
    std::vector<float> sketch_;
    size_t             head_dim_;
};

class Qjl : public Method {
public:
    explicit Qjl(int bits) : bits_(bits) {}
    Bits bits(Operand operand, int d) const override { return {.row = coded_row_bits(bits_, d) + (operand == Operand::key ? d + 16 : 0)}; }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t) const override {
        if (layer.operand == Operand::value) return std::make_unique<CodedRows>(bits_, transform_for(layer.head_dim));
        return std::make_unique<Keys>(bits_, layer.head_dim);
    }

private:
    int bits_;
};

} // namespace

std::unique_ptr<Method> make_qjl(int bits) { return std::make_unique<Qjl>(bits); }

} // namespace tightkv::lab
