#include "lab/methods/squat.h"

#include <algorithm>

#include <Eigen/Dense>

#include "lab/methods/cat.h" // second_moment
#include "lab/methods/methods.h"

namespace tightkv::lab {

namespace {

using Dense = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int kBlocks = 4;

class SquatKeys : public KiviKeys {
public:
    SquatKeys(int bits, int head_dim, const Dense& metric) : KiviKeys(bits, head_dim) {
        const Eigen::Index d = head_dim, step = d / kBlocks;
        for (Eigen::Index p = step; p < d; p += step)
            moves_.push_back(-metric.block(p, p, d - p, d - p).ldlt().solve(metric.block(p, 0, d - p, p)));
    }

protected:
    void code_group(float* group) const override {
        using Rows         = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        const auto       d = static_cast<Eigen::Index>(head_dim_), step = d / kBlocks;
        Eigen::Map<Rows> seen(group, static_cast<Eigen::Index>(kTokensOfGroup), d);
        const Rows       exact = seen;
        for (Eigen::Index p = 0; p < d; p += step) {
            if (p > 0) { // errors so far, [token][p], move the rest
                const Dense e         = (seen.leftCols(p) - exact.leftCols(p)).cast<double>();
                const Dense move      = e * moves_[static_cast<size_t>(p / step) - 1].transpose();
                seen.rightCols(d - p) = exact.rightCols(d - p) + move.cast<float>();
            }
            code_channels(group, static_cast<size_t>(p), static_cast<size_t>(p + step));
        }
    }

private:
    std::vector<Dense> moves_; // -A_RR^-1 A_RP after each block but the last, [rest][so far]
};

class Squat : public Method {
public:
    Squat(int bits, bool one_vector) : bits_(bits), rank_(one_vector ? 1 : kSquatSubspace) {}
    bool needs_samples() const override { return true; }
    Bits bits(Operand operand, int d) const override {
        Bits b = kivi_bits(operand, bits_, d);
        if (operand == Operand::key) b.model = 16.0 * rank_ * d;
        return b;
    }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t head) const override {
        const int d = layer.head_dim;
        if (layer.operand == Operand::value) return make_kivi_values(bits_, d);
        const std::span<const float> queries = layer.heads[head].queries;
        const std::vector<double>    moment  = second_moment(queries, d);
        // Right singular vectors and squared singular values of the queries are eigenvectors and eigenvalues of Q^T Q.
        const Eigen::SelfAdjointEigenSolver<Dense> s(Eigen::Map<const Dense>(moment.data(), d, d) *
                                                     (static_cast<double>(queries.size()) / d));
        const Dense                                v = s.eigenvectors().rightCols(rank_); // ascending
        const Dense metric = Dense::Identity(d, d) + kSquatLambda * v * s.eigenvalues().tail(rank_).asDiagonal() * v.transpose();
        return std::make_unique<SquatKeys>(bits_, d, metric);
    }

private:
    int bits_, rank_;
};

} // namespace

std::unique_ptr<KiviKeys> make_squat_keys(int bits, int head_dim, const std::vector<double>& metric) {
    return std::make_unique<SquatKeys>(bits, head_dim, Eigen::Map<const Dense>(metric.data(), head_dim, head_dim));
}

std::unique_ptr<Method> make_squat(int bits, bool one_vector) { return std::make_unique<Squat>(bits, one_vector); }

} // namespace tightkv::lab
