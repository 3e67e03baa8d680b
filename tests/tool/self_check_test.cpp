// The check that comes before every measurement: f16 against itself.
#include "self_check.h"

#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "errors.h"

using namespace tightkv::tool;

namespace {

// Two chunks of three positions, with the divergences given in the second one's place.
Summary summary(std::initializer_list<double> klds, double nll = 2.25, bool top1 = true) {
    Scores s(2);
    size_t i = 0;
    for (const double kld : klds) s.add(i++ % 2, {.nll = nll, .kld = kld, .top1 = top1});
    return s.summary();
}

// What it says; empty where it passes.
std::string refusal(const Summary& reference, const Summary& again) {
    try {
        require_identical("decode", reference, again);
        return {};
    } catch (const Failure& f) {
        EXPECT_EQ(f.exit_code, kExitFailure);
        return f.what();
    }
}

const Summary kGood = summary({0, 0, 0, 0, 0, 0});

} // namespace

TEST(SelfCheck, IdenticalPasses) { EXPECT_EQ(refusal(kGood, kGood), ""); }

TEST(SelfCheck, SaysWhatDiffers) {
    const std::string m = refusal(kGood, summary({0, 0, 0, 0, 0, 0.25}));
    for (const char* part : {"refused to measure", "decode path", "KLD 0.0417"}) EXPECT_NE(m.find(part), std::string::npos) << m;
}

TEST(SelfCheck, TheSmallestDifferenceIsRefused) {
    constexpr double kTiny = std::numeric_limits<double>::denorm_min();
    EXPECT_NE(refusal(kGood, summary({0, 0, 0, 0, 0, 6 * kTiny})), ""); // a mean of kTiny
    EXPECT_NE(refusal(kGood, summary({0, 0, 0, 0, 0, -6 * kTiny})), "");
    EXPECT_NE(refusal(kGood, summary({0, 0, 0, 0, 0, 0}, std::nextafter(2.25, 3))), ""); // one step of the likelihood
    EXPECT_NE(refusal(kGood, summary({1e-9, -1e-9, 0, 0, 0, 0})), "");                   // of both signs, with a mean of 0
    Summary other = kGood;
    other.top1    = std::nextafter(1.0, 0.0);
    EXPECT_NE(refusal(kGood, other), "");
}

TEST(SelfCheck, NaNIsRefused) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    EXPECT_NE(refusal(kGood, summary({0, 0, 0, 0, 0, nan})), "");
    const Summary broken = summary({0, 0, 0, 0, 0, 0}, nan);
    EXPECT_NE(refusal(kGood, broken), "");
    EXPECT_NE(refusal(broken, kGood), "");
    EXPECT_NE(refusal(broken, broken), ""); // both alike, and worthless
    for (double Summary::*field : {&Summary::ppl, &Summary::kld, &Summary::kld_se, &Summary::kld_p999, &Summary::top1}) {
        Summary s = kGood;
        s.*field  = nan;
        EXPECT_NE(refusal(kGood, s), "");
    }
}

TEST(SelfCheck, NothingScoredIsRefused) {
    EXPECT_NE(refusal(Summary{}, Summary{}), "");
    EXPECT_NE(refusal(kGood, Summary{}), "");
    EXPECT_NE(refusal(kGood, summary({0, 0, 0, 0, 0})), ""); // a token less
}
