#include "lab/methods/cat.h"

#include <algorithm>
#include <cmath>

#include <Eigen/Dense>

#include "lab/methods/methods.h"

namespace tightkv::lab {

namespace {

using Dense = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// A symmetric matrix with f(eigenvalue) for its eigenvalues.
template <class F> Dense spectral(const Dense& a, const F& f) {
    const Eigen::SelfAdjointEigenSolver<Dense> s(a);
    const Eigen::VectorXd values = s.eigenvalues().unaryExpr([&](double v) { return f(std::max(v, 1e-12 * s.eigenvalues().maxCoeff())); });
    return s.eigenvectors() * values.asDiagonal() * s.eigenvectors().transpose();
}

Dense as_dense(const std::vector<double>& m, int d) { return Eigen::Map<const Dense>(m.data(), d, d); }

Dense shrunk(const Dense& m) {
    const double mean = m.trace() / static_cast<double>(m.rows());
    return (1 - kCatShrink) * m + kCatShrink * mean * Dense::Identity(m.rows(), m.cols());
}

struct Pair {
    Dense m, inverse;
};

Pair align(const Dense& rows, const Dense& queries) {
    const Dense root = spectral(queries, [](double v) { return std::sqrt(v); });
    const Dense mean = root * spectral(root * rows * root, [](double v) { return 1 / std::sqrt(v); }) * root; // Sigma_q # Sigma_k^-1
    return {spectral(mean, [](double v) { return std::sqrt(v); }), spectral(mean, [](double v) { return 1 / std::sqrt(v); })};
}

// H m, and its inverse m^-1 H^T.
Transform with_hadamard(const Pair& p, int d) {
    const Matrix h = hadamard_matrix(d);
    const Dense hd = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(h.data(), d, d).cast<double>();
    const Dense matrix = hd * p.m, inverse = p.inverse * hd.transpose();
    return Transform(d, {}, Matrix(matrix.data(), matrix.data() + matrix.size()), Matrix(inverse.data(), inverse.data() + inverse.size()));
}

class Cat : public Method {
public:
    Cat(int bits, bool one_vector) : bits_(bits), one_vector_(one_vector) {}
    bool needs_samples() const override { return true; }
    Bits bits(Operand, int d) const override {
        return {.row = coded_row_bits(bits_, d), .model = 16.0 * d * (one_vector_ ? 1 : std::min(d, kCatBlock))};
    }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t head) const override {
        const int d = layer.head_dim;
        Pair      p{Dense::Identity(d, d), Dense::Identity(d, d)};
        if (one_vector_) {
            Dense rows = Dense::Zero(d, d), queries = Dense::Zero(d, d);
            for (const HeadSamples& h : layer.heads) rows += moment(h.rows, d), queries += query_moment(layer, h);
            const Dense r = shrunk(rows), q = shrunk(queries);
            for (int i = 0; i < d; i++) {
                p.m(i, i)       = std::pow(q(i, i) / r(i, i), 0.25);
                p.inverse(i, i) = 1 / p.m(i, i);
            }
        } else {
            const Dense rows = shrunk(moment(layer.heads[head].rows, d)), queries = shrunk(query_moment(layer, layer.heads[head]));
            for (int at = 0; at < d; at += kCatBlock) {
                const int  n                  = std::min(kCatBlock, d - at);
                const Pair block              = align(rows.block(at, at, n, n), queries.block(at, at, n, n));
                p.m.block(at, at, n, n)       = block.m;
                p.inverse.block(at, at, n, n) = block.inverse;
            }
        }
        return std::make_unique<CodedRows>(bits_, with_hadamard(p, d));
    }

private:
    static Dense moment(std::span<const float> rows, int d) { return as_dense(second_moment(rows, d), d); }
    static Dense query_moment(const LayerSamples& layer, const HeadSamples& h) {
        return layer.operand == Operand::key ? moment(h.queries, layer.head_dim) : Dense(Dense::Identity(layer.head_dim, layer.head_dim));
    }

    int  bits_;
    bool one_vector_;
};

} // namespace

std::vector<double> second_moment(std::span<const float> rows, int d) {
    const auto  n = static_cast<Eigen::Index>(rows.size()) / d;
    const Dense x =
        Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(rows.data(), n, d).cast<double>();
    const Dense m = x.transpose() * x / static_cast<double>(n);
    return {m.data(), m.data() + m.size()};
}

Alignment alignment(const std::vector<double>& rows, const std::vector<double>& queries, int d) {
    const Pair p = align(as_dense(rows, d), as_dense(queries, d));
    return {{p.m.data(), p.m.data() + p.m.size()}, {p.inverse.data(), p.inverse.data() + p.inverse.size()}};
}

std::unique_ptr<Method> make_cat(int bits, bool one_vector) { return std::make_unique<Cat>(bits, one_vector); }

} // namespace tightkv::lab
