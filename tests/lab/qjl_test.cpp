// The sketch of signs: unbiased, with the variance that theory gives it, and what that means for the error.
#include "lab/methods/qjl.h"

#include <cmath>
#include <numbers>

#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {
constexpr int    kDim   = 64;
constexpr int    kDraws = 4000;
constexpr double kHalf  = 0x1p-11; // |r| is rounded to fp16
double           dot(const Rows& a, std::span<const float> b) {
              double s = 0;
              for (size_t i = 0; i < a.size(); i++) s += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return s;
}
} // namespace

// <q, k'> is the estimator of the paper, term by term.
TEST(Qjl, TheEquivalentKeyGivesTheEstimator) {
    const Rows r = gaussian_rows(1, kDim, 1), q = gaussian_rows(1, kDim, 2), s = gaussian_matrix(kDim, kDim, 3);
    double     sum = 0;
    for (size_t i = 0; i < kDim; i++) {
        const std::span<const float> row(&s[i * kDim], kDim);
        sum += dot(q, row) * (dot(r, row) >= 0 ? 1 : -1);
    }
    const double expected = std::sqrt(std::numbers::pi / 2) / kDim * std::sqrt(dot(r, r)) * sum;
    Rows         sketched = r;
    sketch_residual(s, sketched);
    EXPECT_NEAR(dot(q, sketched), expected, std::abs(expected) * kHalf + 1e-4);
}

// Section 3: E <q, k'> = <q, r>, variance at most pi/2 |q|^2 |r|^2 / m.
TEST(Qjl, UnbiasedWithTheVarianceOfThePaper) {
    const Rows   r = gaussian_rows(1, kDim, 4), q = gaussian_rows(1, kDim, 5);
    const double truth = dot(q, r), bound = std::numbers::pi / 2 * dot(q, q) * dot(r, r) / kDim;
    double       sum = 0, square = 0;
    for (int draw = 0; draw < kDraws; draw++) {
        Rows sketched = r;
        sketch_residual(gaussian_matrix(kDim, kDim, 1000u + static_cast<unsigned>(draw)), sketched);
        const double e = dot(q, sketched) - truth;
        sum += e, square += e * e;
    }
    const double mean = sum / kDraws, variance = square / kDraws - mean * mean;
    EXPECT_LT(std::abs(mean), 5 * std::sqrt(bound / kDraws) + std::abs(truth) * kHalf); // five standard errors
    EXPECT_LT(variance, bound * (1 + 5 * std::sqrt(2.0 / kDraws)));                     // of a sample variance
    EXPECT_GT(variance, bound / 2);                                                     // the sketch is no better than theory allows
}

// What unbiasedness costs: E |k' - k|^2 = |r|^2 (pi/2 d - 1) / m, for m = d more than the residual that it replaces. From
// E |S^T sign(S r)|^2 = m d + m (m - 1) 2/pi.
TEST(Qjl, TheErrorGrowsByHalf) {
    const Rows r   = gaussian_rows(1, kDim, 6);
    double     sum = 0, square = 0;
    for (int draw = 0; draw < kDraws; draw++) {
        Rows sketched = r;
        sketch_residual(gaussian_matrix(kDim, kDim, 9000u + static_cast<unsigned>(draw)), sketched);
        const double ratio = squared_error(sketched, r) / dot(r, r);
        sum += ratio, square += ratio * ratio;
    }
    const double mean = sum / kDraws, error = std::sqrt((square / kDraws - mean * mean) / kDraws);
    EXPECT_NEAR(mean, (std::numbers::pi / 2 * kDim - 1) / kDim, 5 * error + 2 * kHalf);
}

TEST(Qjl, IsCodesAndSketch) {
    const Rows rows  = gaussian_rows(200, kDim, 7);
    const auto codes = fitted("turbo3", Operand::key, kDim, {}, {}), both = fitted("qjl3", Operand::key, kDim, {}, {});
    EXPECT_EQ(at_once(*fitted("qjl3", Operand::value, kDim, {}, {}), rows, kDim), at_once(*codes, rows, kDim));
    Rows       seen = at_once(*codes, rows, kDim);
    const Rows s    = gaussian_matrix(kDim, kDim, 0x716a6cull);
    for (size_t at = 0; at < rows.size(); at += kDim) {
        Rows r(kDim);
        for (size_t i = 0; i < kDim; i++) r[i] = rows[at + i] - seen[at + i];
        sketch_residual(s, r);
        for (size_t i = 0; i < kDim; i++) seen[at + i] += r[i];
    }
    EXPECT_EQ(at_once(*both, rows, kDim), seen);
}
