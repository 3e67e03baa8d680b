// Quality figures against values computed by hand and against plain double-precision formulas.
#include "metrics.h"

#include <cmath>
#include <random>

#include <gtest/gtest.h>

using namespace tightkv::tool;

namespace {

PositionScore compare(const std::vector<float>& a, const std::vector<float>& b, int next) {
    ReferencePosition r;
    set_reference(r, a, next);
    return score(r, a, b, next);
}

// The definition, in double.
PositionScore by_definition(const std::vector<float>& a, const std::vector<float>& b, int next) {
    const auto log_p = [](const std::vector<float>& x) {
        double sum = 0;
        for (const float v : x) sum += std::exp(static_cast<double>(v));
        std::vector<double> p;
        for (const float v : x) p.push_back(static_cast<double>(v) - std::log(sum));
        return p;
    };
    const auto    pa = log_p(a), pb = log_p(b);
    PositionScore s;
    for (size_t i = 0; i < a.size(); i++) s.kld += std::exp(pa[i]) * (pa[i] - pb[i]);
    s.nll = -pb[static_cast<size_t>(next)];
    return s;
}

} // namespace

TEST(Metrics, TwoTokensByHand) {
    // p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2)
    const PositionScore s = compare({std::log(3.0f), 0.0f}, {5.0f, 5.0f}, 1);
    EXPECT_NEAR(s.kld, 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-6);
    EXPECT_NEAR(s.nll, std::log(2.0), 1e-7);
    EXPECT_TRUE(s.top1); // the first of equals
    EXPECT_FALSE(compare({1, 2, 3}, {3, 2, 1}, 0).top1);
}

TEST(Metrics, IdenticalLogitsGiveExactlyZero) {
    std::mt19937               random(7);
    std::normal_distribution<> normal(0, 5);
    for (const size_t n : {1u, 7u, 8u, 9u, 1001u}) {
        std::vector<float> a(n);
        for (float& v : a) v = static_cast<float>(normal(random));
        const PositionScore s = compare(a, a, static_cast<int>(n / 2));
        EXPECT_EQ(s.kld, 0.0) << n;
        EXPECT_TRUE(s.top1);
        ReferencePosition r;
        set_reference(r, a, static_cast<int>(n / 2));
        EXPECT_EQ(s.nll, r.nll) << n;
    }
}

TEST(Metrics, AgreesWithTheDefinition) {
    std::mt19937               random(3);
    std::normal_distribution<> normal(0, 4), noise(0, 0.2);
    for (const size_t n : {3u, 8u, 15u, 4099u}) {
        std::vector<float> a(n), b(n);
        for (size_t i = 0; i < n; i++) a[i] = static_cast<float>(normal(random) + 30), b[i] = a[i] + static_cast<float>(noise(random) - 7);
        const PositionScore s = compare(a, b, 2), d = by_definition(a, b, 2);
        EXPECT_NEAR(s.kld, d.kld, 2e-6) << n;
        EXPECT_NEAR(s.nll, d.nll, 2e-6) << n;
    }
}

TEST(Metrics, FarLogitsAndBrokenOnes) {
    EXPECT_NEAR(compare({0, -1000}, {0, -1000}, 0).nll, 0.0, 1e-12);
    EXPECT_NEAR(compare({0, 0}, {0, -200}, 1).nll, 200.0, 1e-4);
    EXPECT_TRUE(finite(compare({0, -3e38f}, {0, -3e38f}, 0)));
    EXPECT_FALSE(finite(compare({0, 1}, {std::nanf(""), 1}, 0)));
    EXPECT_FALSE(finite(compare({0, 1}, {INFINITY, 1}, 0)));
}

TEST(Metrics, Percentiles) {
    const std::vector<double> x = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    EXPECT_DOUBLE_EQ(percentile(x, 0.5), 5);
    EXPECT_DOUBLE_EQ(percentile(x, 0.99), 9.9);
    EXPECT_DOUBLE_EQ(percentile(x, 0.999), 9.99);
    EXPECT_DOUBLE_EQ(percentile(x, 1), 10);
    EXPECT_DOUBLE_EQ(percentile(std::vector<double>{4}, 0.999), 4);
    EXPECT_DOUBLE_EQ(percentile(std::vector<double>{1, 2}, 0.5), 1.5);
}

TEST(Metrics, StandardErrorIsOverChunks) {
    // chunk means 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, error sqrt(7 / 3)
    const MeanError m = mean_over_chunks({{0, 2}, {2, 2}, {}, {5, 7}});
    EXPECT_DOUBLE_EQ(m.mean, 3);
    EXPECT_DOUBLE_EQ(m.se, std::sqrt(7.0 / 3));
    // one chunk: over tokens. 1, 3: variance 2, error 1
    EXPECT_DOUBLE_EQ(mean_over_chunks({{1, 3}}).se, 1);
    EXPECT_DOUBLE_EQ(mean_over_chunks({{1}}).se, 0);
}

TEST(Metrics, SummaryOfScores) {
    Scores s(2);
    EXPECT_TRUE(s.empty());
    EXPECT_EQ(s.summary().n_tokens, 0);
    s.add(0, {.nll = 1, .kld = 0.1, .top1 = true});
    s.add(1, {.nll = 3, .kld = 0.3, .top1 = false});
    const Summary sum = s.summary();
    EXPECT_EQ(sum.n_tokens, 2);
    EXPECT_DOUBLE_EQ(sum.ppl, std::exp(2.0));
    EXPECT_DOUBLE_EQ(sum.ppl_se, std::exp(2.0)); // nll 1, 3: error 1
    EXPECT_DOUBLE_EQ(sum.kld, 0.2);
    EXPECT_NEAR(sum.kld_se, 0.1, 1e-15);
    EXPECT_DOUBLE_EQ(sum.kld_median, 0.2);
    EXPECT_NEAR(sum.kld_p99, 0.1 + 0.99 * 0.2, 1e-15);
    EXPECT_NEAR(sum.kld_p999, 0.1 + 0.999 * 0.2, 1e-15);
    EXPECT_DOUBLE_EQ(sum.top1, 0.5);
}

// Chunks differ a lot, the two caches in them little: what is uncertain about each is not uncertain about the difference.
TEST(Metrics, DifferencesArePaired) {
    Scores a(3), b(3);
    for (const double kld : {1.0, 3.0}) a.add(0, {.kld = kld}), b.add(0, {.kld = kld - 0.5});
    a.add(2, {.kld = 10}), b.add(2, {.kld = 9.2});
    const MeanError d = kld_difference(a, b); // over tokens .5, .5, .8; over chunks .5 and .8, one empty
    EXPECT_NEAR(d.mean, 0.6, 1e-15);
    EXPECT_NEAR(d.se, 0.15, 1e-15);
    EXPECT_GT(a.summary().kld_se, 10 * d.se);
    EXPECT_NEAR(kld_difference(b, a).mean, -0.6, 1e-15);
    EXPECT_EQ(kld_difference(a, a).se, 0);
}
