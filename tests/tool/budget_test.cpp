// The choice of formats within a budget.
#include "budget.h"

#include <gtest/gtest.h>

namespace tightkv::tool::test {

namespace {

double cost(const std::vector<BudgetUnit>& units, const std::vector<BudgetFormat>& formats, const std::vector<FormatId>& chosen) {
    double sum = 0;
    for (size_t i = 0; i < units.size(); i++)
        for (const BudgetFormat& f : formats)
            if (f.id == chosen[i]) sum += units[i].kld * f.distortion / formats[0].distortion;
    return sum;
}

} // namespace

TEST(Budget, FormatsGetBetterWithTheirBits) {
    const auto formats = budget_formats(64);
    ASSERT_GE(formats.size(), 3u);
    for (size_t i = 1; i < formats.size(); i++) {
        EXPECT_GT(format(formats[i].id).bits, format(formats[i - 1].id).bits);
        EXPECT_LT(formats[i].distortion, formats[i - 1].distortion / 2) << "a bit is worth 6 dB, or nearly";
    }
    EXPECT_NEAR(formats[0].distortion, 0.0855, 0.004); // turbo2t at head_dim 64: 10.68 dB (docs/formats.md)
}

TEST(Budget, EqualUnitsGetTheUniformFormat) {
    const std::vector<BudgetUnit> units(8, {64, 192, 0.01});
    const auto                    formats = budget_formats(64);
    for (const BudgetFormat& f : formats)
        EXPECT_EQ(choose_formats(units, formats, format(f.id).bits_per_value(64)), std::vector<FormatId>(8, f.id));
    EXPECT_TRUE(choose_formats(units, formats, 2.2).empty());
}

TEST(Budget, BitsGoWhereTheyGainMost) {
    const auto              formats = budget_formats(64);
    std::vector<BudgetUnit> units(8, {64, 192, 0.001});
    units[3].kld      = 0.1;
    const auto chosen = choose_formats(units, formats, 3.25);
    EXPECT_LE(average_bits(units, chosen), 3.25 + 1e-9);
    for (size_t i = 0; i < units.size(); i++) EXPECT_TRUE(i == 3 || format(chosen[i]).bits < format(chosen[3]).bits) << i;
    EXPECT_LT(cost(units, formats, chosen), cost(units, formats, std::vector<FormatId>(8, FormatId::turbo3t)));
}

// Against every choice there is, for few units of unequal size and cost.
TEST(Budget, IsCloseToTheBestOfAllChoices) {
    const auto                    formats = budget_formats(64);
    const std::vector<BudgetUnit> units   = {{64, 192, 0.02}, {64, 64, 0.001}, {64, 128, 0.004}, {64, 192, 0.008}, {64, 64, 0.016}};
    for (const double bits : {2.5, 3.0, 3.25, 3.6, 4.5}) {
        double                best = 1e9;
        std::vector<FormatId> f(units.size());
        size_t                all = 1;
        for (size_t i = 0; i < units.size(); i++) all *= formats.size();
        for (size_t n = 0; n < all; n++) {
            for (size_t i = 0, rest = n; i < units.size(); i++, rest /= formats.size()) f[i] = formats[rest % formats.size()].id;
            if (average_bits(units, f) <= bits) best = std::min(best, cost(units, formats, f));
        }
        const auto chosen = choose_formats(units, formats, bits);
        EXPECT_LE(average_bits(units, chosen), bits + 1e-9);
        // What greed leaves is at most the gain of the one step that did not fit any more.
        double step = 0;
        for (const BudgetUnit& u : units) step = std::max(step, u.kld * (1 - formats[1].distortion / formats[0].distortion));
        EXPECT_LE(cost(units, formats, chosen), best + step);
    }
}

} // namespace tightkv::tool::test
