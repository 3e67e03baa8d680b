// Channels with one bit more.
#include "lab/methods/outlier.h"

#include "lab/methods/coded_rows.h"
#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

TEST(Outlier, ChannelsOfTheLargestMeanSquare) {
    const Rows          rows = gaussian_rows(500, 64, 1, [](size_t c) { return c % 2 ? 5.0 : 1.0; });
    std::vector<size_t> odd;
    for (size_t c = 1; c < 64; c += 2) odd.push_back(c);
    EXPECT_EQ(outlier_channels(rows, 64), odd);
}

TEST(Outlier, CodesAverageToTheHalf) {
    for (const int d : {64, 128, 256}) {
        const double scales = 2 * 16;
        EXPECT_EQ(make_method("outlier2.5")->bits(Operand::key, d).row - scales, 2.5 * d);
        EXPECT_EQ(make_method("outlier3.5")->bits(Operand::value, d).row - scales, 3.5 * d);
    }
}

// Two independent instances: each half is what the codec makes of it with its own number of bits.
TEST(Outlier, HalvesAreRowsOfTheirOwn) {
    const Rows rows = gaussian_rows(20, 128, 2, [](size_t c) { return c >= 64 ? 6.0 : 1.0; });
    const Rows seen = at_once(*fitted("outlier2.5", Operand::key, 128, rows, {}), rows, 128);
    for (size_t t = 0; t < 20; t++)
        for (const size_t half : {0u, 64u}) {
            const Rows part(rows.begin() + static_cast<std::ptrdiff_t>(t * 128 + half),
                            rows.begin() + static_cast<std::ptrdiff_t>(t * 128 + half + 64));
            const Rows coded = at_once(*fitted(half ? "turbo3" : "turbo2", Operand::key, 64, {}, {}), part, 64);
            for (size_t i = 0; i < 64; i++) ASSERT_EQ(seen[t * 128 + half + i], coded[i]) << t;
        }
}

// With half of the channels eight times as long, the error is all but theirs: that of 3 bits, with half a bit saved.
TEST(Outlier, NearTheHigherFormatWhereOutliersCarryTheError) {
    const Rows rows  = gaussian_rows(500, 128, 3, [](size_t c) { return c % 2 ? 8.0 : 1.0; });
    const auto error = [&](const char* name) {
        return squared_error(at_once(*fitted(name, Operand::key, 128, rows, {}), rows, 128), rows);
    };
    EXPECT_LT(error("outlier2.5"), 1.15 * error("turbo3"));
    EXPECT_LT(error("outlier2.5"), 0.4 * error("turbo2"));
}
