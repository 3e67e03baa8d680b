// CAT: the transform has the property that defines it, and the error of scores falls as theory says.
#include "lab/methods/cat.h"

#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {

constexpr int    kDim = 64;
constexpr size_t kN   = 2000;

using Square = std::vector<double>;
Square product(const Square& a, const Square& b, size_t d) {
    Square c(d * d, 0.0);
    for (size_t i = 0; i < d; i++)
        for (size_t k = 0; k < d; k++)
            for (size_t j = 0; j < d; j++) c[i * d + j] += a[i * d + k] * b[k * d + j];
    return c;
}

// Rows of given spreads in a basis of their own: neither is diagonal.
Rows turned(Rows rows, unsigned seed) {
    const Rows directions = gaussian_rows(6, kDim, seed);
    for (size_t at = 0; at < rows.size(); at += kDim)
        for (size_t r = 0; r < 6; r++) { // reflections
            double dot = 0, norm = 0;
            for (size_t i = 0; i < kDim; i++) {
                const auto u = static_cast<double>(directions[r * kDim + i]);
                dot += u * static_cast<double>(rows[at + i]), norm += u * u;
            }
            for (size_t i = 0; i < kDim; i++)
                rows[at + i] -= static_cast<float>(2 * dot / norm * static_cast<double>(directions[r * kDim + i]));
        }
    return rows;
}

Rows some(const Rows& rows) { return Rows(rows.begin(), rows.begin() + 200 * kDim); }

double ratio_to_turbo(const char* name, const char* turbo, const Rows& keys, const Rows& queries) {
    const Rows seen  = at_once(*fitted(name, Operand::key, kDim, keys, queries), some(keys), kDim);
    const Rows plain = at_once(*fitted(turbo, Operand::key, kDim, {}, {}), some(keys), kDim);
    return score_error(some(queries), some(keys), seen, kDim) / score_error(some(queries), some(keys), plain, kDim);
}

} // namespace

// G = Sigma_q # Sigma_k^-1 is the one positive solution of G Sigma_k G = Sigma_q, and M^2 = G.
TEST(Cat, TheTransformIsTheGeometricMean) {
    constexpr size_t d = 16;
    const Square     k = second_moment(gaussian_rows(100, d, 1, [](size_t c) { return 1.0 + double(c); }), d);
    const Square     q = second_moment(gaussian_rows(100, d, 2, [](size_t c) { return 3.0 / (1 + double(c)); }), d);
    const Alignment  a = alignment(k, q, d);
    const Square     g = product(a.m, a.m, d), back = product(product(g, k, d), g, d), one = product(a.m, a.inverse, d);
    double           scale = 0;
    for (const double v : q) scale = std::max(scale, std::abs(v));
    for (size_t i = 0; i < d * d; i++) {
        EXPECT_NEAR(back[i], q[i], 1e-9 * scale);
        EXPECT_NEAR(one[i], i % (d + 1) == 0, 1e-9);
        EXPECT_NEAR(a.m[i], a.m[i % d * d + i / d], 1e-9);
    }
}

TEST(Cat, DiagonalByHand) { // (q/k)^(1/4)
    const Alignment a = alignment({16, 0, 0, 1}, {1, 0, 0, 81}, 2);
    EXPECT_NEAR(a.m[0], 0.5, 1e-12);
    EXPECT_NEAR(a.m[3], 3, 1e-12);
    EXPECT_NEAR(a.m[1], 0, 1e-12);
}

// With equal distortion D of all coordinates after the transform, the error of scores is D tr(M Sk M)/d tr(M^-1 Sq M^-1): for the best M
// (tr (Sq^1/2 Sk Sq^1/2)^1/2)^2 / d, without one tr Sk tr Sq / d. Keys are long where queries are short here, so both are diagonal in one
// basis and the traces are sums.
TEST(Cat, ScoreErrorFallsAsPredicted) {
    const auto spread_k = [](size_t c) { return c < 8 ? 8.0 : 1.0; };
    const auto spread_q = [](size_t c) { return c < 8 ? 0.25 : 1.0; };
    double     aligned = 0, k2 = 0, q2 = 0;
    for (size_t c = 0; c < kDim; c++) aligned += spread_k(c) * spread_q(c), k2 += std::pow(spread_k(c), 2), q2 += std::pow(spread_q(c), 2);
    const double predicted = aligned * aligned / (k2 * q2);
    ASSERT_LT(predicted, 0.3);
    for (const auto& [name, turbo] : {std::pair{"cat2", "turbo2"}, {"cat3", "turbo3"}, {"cat4", "turbo4"}}) {
        const Rows keys = gaussian_rows(kN, kDim, 3, spread_k), queries = gaussian_rows(kN, kDim, 4, spread_q);
        // In a basis that the Hadamard matrix knows nothing of, so that errors spread evenly. Moments are shrunk, distortions differ a
        // little.
        EXPECT_NEAR(ratio_to_turbo(name, turbo, turned(keys, 5), turned(queries, 5)) / predicted, 1, 0.2);
    }
}

// One vector sees channels, not directions.
TEST(Cat, OneVectorHelpsWhereChannelsDiffer) {
    const Rows   keys    = gaussian_rows(kN, kDim, 3, [](size_t c) { return c < 8 ? 8.0 : 1.0; });
    const Rows   queries = gaussian_rows(kN, kDim, 4, [](size_t c) { return c < 8 ? 0.25 : 1.0; });
    const double full    = ratio_to_turbo("cat3", "turbo3", keys, queries);
    EXPECT_NEAR(ratio_to_turbo("catv3", "turbo3", keys, queries) / full, 1, 0.1);
    EXPECT_GT(ratio_to_turbo("catv3", "turbo3", turned(keys, 5), turned(queries, 5)), 2 * full);
}

// Nothing to gain, nothing lost.
TEST(Cat, IsotropicDataStaysAsItIs) {
    const Rows keys = gaussian_rows(kN, kDim, 6), queries = gaussian_rows(kN, kDim, 7);
    EXPECT_NEAR(ratio_to_turbo("cat3", "turbo3", keys, queries), 1, 0.05);
}
