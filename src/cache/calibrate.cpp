// Statistics and their solution; the only user of Eigen.
#include "cache/calibrate.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <utility>

#include <Eigen/Dense>

namespace tightkv {

namespace {

using Matrix  = Eigen::MatrixXd;
using Vector  = Eigen::VectorXd;
using Complex = std::complex<double>;

constexpr Eigen::Index kBlock = 256; // rows that are converted to double at once

struct Gaussian {
    Vector mean;
    Matrix second; // E[x x^T], of the rows themselves
    Matrix covariance() const { return second - mean * mean.transpose(); }
};

Gaussian expectations(const Moments& m) {
    const double   n = m.weight > 0 ? m.weight : 1;
    const Matrix   s = Eigen::Map<const Matrix>(m.products.data(), m.d, m.d).selfadjointView<Eigen::Lower>();
    const Gaussian g = {Eigen::Map<const Vector>(m.sum.data(), m.d) / n, s / n};
    return g;
}

// Rows turned by every offset 0 … n-1, exactly. As complex numbers z the pairs are multiplied by exp(i f o), so E[z_a conj z_b] turns with
// the difference of the frequencies and E[z_a z_b] with their sum.
void extend(Gaussian& g, const Rope& rope, int64_t n) {
    const std::vector<RopePair> pairs = rope_pairs(rope, g.mean.size());
    for (const RopePair& a : pairs) {
        const Complex z = Complex(g.mean[a.x], g.mean[a.y]) * mean_turn(a.f, n);
        g.mean[a.x] = z.real(), g.mean[a.y] = z.imag();
        for (const RopePair& b : pairs) {
            double &      xx = g.second(a.x, b.x), &xy = g.second(a.x, b.y), &yx = g.second(a.y, b.x), &yy = g.second(a.y, b.y);
            const Complex p = Complex(xx + yy, yx - xy) * mean_turn(a.f - b.f, n);
            const Complex q = Complex(xx - yy, yx + xy) * mean_turn(a.f + b.f, n);
            xx = (p + q).real() / 2, yy = (p - q).real() / 2, yx = (p + q).imag() / 2, xy = (q - p).imag() / 2;
        }
    }
}

// Towards the multiple of the identity that has the same trace. size: trace of the second moment; what is smaller than 1e-9 of it is
// rounding (differences of doubles), and the result is positive definite for rows that never change, or are zero.
Matrix shrunk(const Matrix& s, double size, double weight) {
    const double level = std::max({s.trace(), 1e-9 * size, 1e-30}) / static_cast<double>(s.rows());
    return (1 - weight) * s + weight * level * Matrix::Identity(s.rows(), s.cols());
}

Matrix hadamard(int d) {
    const Transform    t(d);
    Matrix             h(d, d);
    std::vector<float> column(static_cast<size_t>(d));
    for (int j = 0; j < d; j++) {
        std::fill(column.begin(), column.end(), 0.0f);
        column[static_cast<size_t>(j)] = 1.0f;
        t.forward(column.data());
        for (int i = 0; i < d; i++) h(i, j) = static_cast<double>(column[static_cast<size_t>(i)]);
    }
    return h;
}

std::vector<float> row_major(const Matrix& m) {
    std::vector<float> out;
    for (Eigen::Index i = 0; i < m.rows(); i++)
        for (Eigen::Index j = 0; j < m.cols(); j++) out.push_back(static_cast<float>(m(i, j)));
    return out;
}

// weight: second moment of the queries, or the identity. The mean squared norm of rows stays what it was, so that scales of rows do.
HeadProfile solve_head(const Gaussian& rows, const Matrix& weight, const Matrix& h, double shrink) {
    const Matrix                                s = shrunk(rows.covariance(), rows.second.trace(), shrink);
    const Eigen::SelfAdjointEigenSolver<Matrix> w(weight);
    const Matrix                                m = w.operatorSqrt(), m_inverse = w.operatorInverseSqrt();
    const Eigen::SelfAdjointEigenSolver<Matrix> e(m * s * m);
    const Vector                                quarter = e.eigenvalues().cwiseMax(1e-300).array().sqrt().sqrt();
    Matrix                                      t       = h * quarter.cwiseInverse().asDiagonal() * e.eigenvectors().transpose() * m;
    Matrix                                      inverse = m_inverse * e.eigenvectors() * quarter.asDiagonal() * h.transpose();
    const double                                scale   = std::sqrt(s.trace() / (t * s * t.transpose()).trace());
    t *= scale, inverse /= scale;
    HeadProfile p;
    for (const double x : rows.mean) p.mean.push_back(static_cast<float>(x));
    p.matrix = row_major(t), p.inverse = row_major(inverse);
    return p;
}

bool all_finite(const HeadProfile& p) {
    const auto good = [](const std::vector<float>& x) { return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); }); };
    return good(p.mean) && good(p.matrix) && good(p.inverse);
}

} // namespace

Moments::Moments(int head_dim)
    : d(head_dim), sum(static_cast<size_t>(head_dim), 0.0), products(static_cast<size_t>(head_dim) * static_cast<size_t>(head_dim), 0.0) {}

void Moments::add(const float* rows, size_t stride, size_t n, const float* weights) {
    using Rows = Eigen::Map<const Eigen::MatrixXf, 0, Eigen::OuterStride<>>;
    Eigen::Map<Vector> s(sum.data(), d);
    Eigen::Map<Matrix> p(products.data(), d, d);
    for (size_t from = 0; from < n; from += kBlock) {
        const auto some = std::min<Eigen::Index>(kBlock, static_cast<Eigen::Index>(n - from));
        Matrix     x    = Rows(rows + from * stride, d, some, Eigen::OuterStride<>(static_cast<Eigen::Index>(stride))).cast<double>();
        Vector     w    = Vector::Ones(some);
        if (weights) w = Eigen::Map<const Eigen::VectorXf>(weights + from, some).cast<double>();
        weight += w.sum(), squares += w.squaredNorm();
        s += x * w;
        if (weights) x = x * w.cwiseSqrt().asDiagonal();
        p.selfadjointView<Eigen::Lower>().rankUpdate(x);
    }
    count += static_cast<int64_t>(n);
}

void Calibration::add_rows(int block, Operand op, int head_dim, int n_kv_heads, std::span<const float> rows,
                           std::span<const float> weights) {
    Layer&       l     = layers_[block];
    auto&        heads = op == Operand::K ? l.k : l.v;
    const size_t d = static_cast<size_t>(head_dim), stride = d * static_cast<size_t>(n_kv_heads), n = rows.size() / stride;
    if (heads.empty()) heads.assign(static_cast<size_t>(n_kv_heads), Moments(head_dim));
    for (size_t h = 0; h < heads.size(); h++) heads[h].add(rows.data() + h * d, stride, n, weights.empty() ? nullptr : &weights[h * n]);
}

void Calibration::add_queries(int block, int head_dim, int n_heads, int n_kv_heads, std::span<const float> rows,
                              std::span<const float> weights) {
    auto&        heads = layers_[block].q;
    const size_t d = static_cast<size_t>(head_dim), stride = d * static_cast<size_t>(n_heads), n = rows.size() / stride;
    const size_t group = static_cast<size_t>(n_heads / n_kv_heads);
    if (heads.empty()) heads.assign(static_cast<size_t>(n_kv_heads), Moments(head_dim));
    for (size_t h = 0; h < group * heads.size(); h++)
        heads[h / group].add(rows.data() + h * d, stride, n, weights.empty() ? nullptr : &weights[h * n]);
}

void Calibration::set_rope(int block, Rope rope) { layers_[block].rope = std::move(rope); }

int64_t Calibration::tokens() const {
    int64_t fewest = layers_.empty() ? 0 : INT64_MAX;
    for (const auto& [block, l] : layers_)
        for (const auto* heads : {&l.k, &l.v}) fewest = std::min(fewest, heads->empty() ? 0 : heads->front().count);
    return fewest;
}

double shrinkage(double tokens) { // 0.02 at 4,000 tokens was measured; the best weight goes with 1 / tokens (Ledoit & Wolf 2004)
    return std::clamp(80.0 / std::max(tokens, 1.0), 0.01, 1.0);
}

Status Calibration::solve(int64_t offsets, Profile& out) const {
    if (tokens() < kMinCalibrationTokens)
        return invalid_argument("calibration needs " + std::to_string(kMinCalibrationTokens) + " tokens or more, there are " +
                                std::to_string(tokens()));
    std::vector<LayerProfile> layers;
    std::map<int, Matrix>     transforms; // by head_dim
    for (const auto& [block, l] : layers_) {
        const std::string name = "block " + std::to_string(block);
        LayerProfile      p;
        p.block      = block;
        p.head_dim_k = l.k.front().d, p.head_dim_v = l.v.front().d;
        if (l.q.size() != l.k.size() || l.v.size() != l.k.size() || l.q.front().d != p.head_dim_k)
            return unsupported(name + " has heads of keys, values and queries that do not match");
        for (const int d : {p.head_dim_k, p.head_dim_v}) {
            if (!valid_head_dim(d))
                return unsupported(name + " has head_dim " + std::to_string(d) + "; accepted: multiples of 32 from 32 to 1024");
            if (!transforms.contains(d)) transforms[d] = hadamard(d);
        }
        if (2 * l.rope.frequencies.size() > static_cast<size_t>(p.head_dim_k))
            return unsupported(name + " has a RoPE of more dimensions than its keys");
        for (size_t h = 0; h < l.k.size(); h++) {
            Gaussian k = expectations(l.k[h]), q = expectations(l.q[h]);
            if (offsets > 1) extend(k, l.rope, offsets), extend(q, l.rope, offsets);
            // Query heads of a group ask the same tokens: they are no more of them.
            const double tokens_asked =
                l.q[h].equal_rows() * static_cast<double>(l.k[h].count) / static_cast<double>(std::max<int64_t>(l.q[h].count, 1));
            const Matrix asked = shrunk(q.second, q.second.trace(), shrinkage(tokens_asked));
            p.k.push_back(solve_head(k, asked, transforms[p.head_dim_k], shrinkage(l.k[h].equal_rows())));
            p.v.push_back(solve_head(expectations(l.v[h]), Matrix::Identity(p.head_dim_v, p.head_dim_v), transforms[p.head_dim_v],
                                     shrinkage(l.v[h].equal_rows())));
            if (!all_finite(p.k.back()) || !all_finite(p.v.back()))
                return invalid_argument(name + " gave keys, values or queries that are not finite");
        }
        layers.push_back(std::move(p));
    }
    out.layers = std::move(layers);
    return {};
}

} // namespace tightkv
