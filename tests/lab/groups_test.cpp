// KIVI and InnerQ: groups, windows, and on what data they win.
#include <algorithm>

#include "lab/methods/affine.h"
#include "lab/methods/innerq.h"
#include "lab/methods/kivi.h"
#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {

constexpr size_t kDim = 64, kN = 96;

// Groups of 32 channels of one token.
Rows per_token(Rows rows, int bits) {
    for (size_t at = 0; at < rows.size(); at += kGroup) code_asymmetric(&rows[at], kGroup, 1, bits);
    return rows;
}

// Rows with a channel far from zero, as keys of many models have.
Rows with_outlier_channel(unsigned seed) {
    Rows rows = gaussian_rows(kN, kDim, seed);
    for (size_t t = 0; t < kN; t++) rows[t * kDim + 5] += 50;
    return rows;
}

// Mean square of the error over the other channels of its group.
double error_beside_outlier(const Rows& seen, const Rows& rows) {
    double sum = 0, n = 0;
    for (size_t t = kSinks; t < kN - kRecent; t++)
        for (size_t c = 0; c < kGroup; c++)
            if (c != 5) sum += std::pow(static_cast<double>(seen[t * kDim + c]) - static_cast<double>(rows[t * kDim + c]), 2), n++;
    return sum / n;
}

} // namespace

TEST(Affine, ByHand) {
    float x[] = {0, 1, 2, 3, 1.4f, 2.6f}; // scale 1: codes 0 1 2 3 1 3
    code_asymmetric(x, 6, 1, 2);
    EXPECT_EQ(std::vector<float>(x, x + 6), (std::vector<float>{0, 1, 2, 3, 1, 3}));
    float y[] = {-3, 0, 1.4f, 2.9f}; // 3 bits, scale 1
    code_symmetric(y, 4, 1, 3);
    EXPECT_EQ(std::vector<float>(y, y + 4), (std::vector<float>{-3, 0, 1, 3}));
    float z[] = {7, -1, 7, -1, 7, -1}; // every second
    code_asymmetric(z + 1, 3, 2, 4);
    EXPECT_EQ(std::vector<float>(z, z + 6), (std::vector<float>{7, -1, 7, -1, 7, -1}));
}

TEST(Affine, ErrorIsHalfAStep) {
    for (const int bits : {2, 3, 4}) {
        const Rows rows = gaussian_rows(1, kGroup, 1);
        Rows       seen = rows;
        code_asymmetric(seen.data(), kGroup, 1, bits);
        const auto [low, high] = std::minmax_element(rows.begin(), rows.end());
        const float step       = (*high - *low) / static_cast<float>((1 << bits) - 1);
        // Scale and zero are rounded to 11 bits; the scale's error counts once per step.
        const float rounding = std::max(std::abs(*low), std::abs(*high)) * 0x1p-11f + step * static_cast<float>(1 << bits) * 0x1p-11f;
        for (size_t i = 0; i < kGroup; i++) EXPECT_LE(std::abs(seen[i] - rows[i]), step / 2 + rounding);
    }
}

TEST(Affine, TheBetterCodeIsNeverWorse) {
    int symmetric_won = 0;
    for (unsigned seed = 0; seed < 40; seed++) {
        Rows rows = gaussian_rows(1, kGroup, seed);
        if (seed % 2)
            for (float& v : rows) v += 3; // far from zero: asymmetric
        Rows a = rows, s = rows, best = rows;
        code_asymmetric(a.data(), kGroup, 1, 3), code_symmetric(s.data(), kGroup, 1, 3), code_better(best.data(), kGroup, 1, 3);
        EXPECT_EQ(squared_error(best, rows), std::min(squared_error(a, rows), squared_error(s, rows)));
        symmetric_won += best == s;
        if (seed % 2) {
            EXPECT_EQ(best, a) << seed;
        }
    }
    EXPECT_GT(symmetric_won, 0); // the choice is a choice
}

// Section 3 of the paper: keys per channel, because outliers sit in fixed channels; a token of its group pays for them otherwise.
TEST(Kivi, KeysPerChannelBeatPerTokenWithAnOutlierChannel) {
    const Rows rows = with_outlier_channel(1);
    const Rows seen = at_once(*fitted("kivi2", Operand::key, kDim, {}, {}), rows, kDim);
    // Per token the step is a third of 50: the codes of the 31 other channels say nothing, and the error is at least their variance, 1.
    // Per channel the step is a third of the range of 32 normal values, about 4: 1.33^2 / 12 = 0.15.
    EXPECT_GT(error_beside_outlier(per_token(rows, 2), rows), 1);
    EXPECT_LT(error_beside_outlier(seen, rows), 0.25);
    // Without outliers it is about the same: it is not just another number of groups.
    const Rows plain = gaussian_rows(kN, kDim, 2);
    EXPECT_NEAR(squared_error(at_once(*fitted("kivi2", Operand::key, kDim, {}, {}), plain, kDim), plain) /
                    squared_error(per_token(plain, 2), plain),
                1, 0.1);
}

TEST(Kivi, UnfinishedGroupsAndNewestValuesAreExact) {
    const Rows rows   = gaussian_rows(kN + 5, kDim, 3);
    const Rows keys   = at_once(*fitted("kivi2", Operand::key, kDim, {}, {}), rows, kDim);
    const Rows values = at_once(*fitted("kivi2", Operand::value, kDim, {}, {}), rows, kDim);
    const auto exact  = [&](const Rows& seen, size_t t) { return std::equal(&rows[t * kDim], &rows[t * kDim] + kDim, &seen[t * kDim]); };
    for (size_t t = 0; t < kN + 5; t++) {
        EXPECT_EQ(exact(keys, t), t >= kN) << t;
        EXPECT_EQ(exact(values, t), t >= kN + 5 - kNewest) << t;
    }
    // A value that has left the window is a per-token code.
    const Rows coded = per_token(Rows(rows.begin(), rows.begin() + kDim), 2);
    EXPECT_TRUE(std::equal(coded.begin(), coded.end(), values.begin()));
}

TEST(InnerQ, SinksAndRecentKeysAreExact) {
    const Rows rows   = gaussian_rows(kN, kDim, 4);
    const Rows keys   = at_once(*fitted("innerq3", Operand::key, kDim, rows, {}), rows, kDim);
    const Rows values = at_once(*fitted("innerq3", Operand::value, kDim, rows, {}), rows, kDim);
    for (size_t t = 0; t < kN; t++) {
        const auto exact = [&](const Rows& seen) { return std::equal(&rows[t * kDim], &rows[t * kDim] + kDim, &seen[t * kDim]); };
        EXPECT_EQ(exact(keys), t < kSinks || t >= kN - kRecent) << t;
        EXPECT_EQ(exact(values), t < kSinks) << t; // 96 tokens: no unfinished group
    }
}

// Normalised channels: an outlier channel no longer sets the step of the 31 others of its group.
TEST(InnerQ, NormalisationProtectsTheOtherChannels) {
    const Rows rows    = with_outlier_channel(5);
    const auto factors = channel_factors(rows, kDim);
    EXPECT_GT(factors[5], 3 * factors[6]);
    Rows plain = rows;
    for (size_t at = 0; at < plain.size(); at += kGroup) code_better(&plain[at], kGroup, 1, 3);
    // The outlier is 53, the others are up to 3. At 3 bits symmetric codes have a step of 53/3: the others become 0, and the error is their
    // variance, 1, known to 3 % from 1860 values. Divided by sqrt(53) and sqrt(3) the range is 7.3 + 1.7, in units of the others 15.6, and
    // the step 2.2: 2.2^2 / 12 = 0.41.
    EXPECT_GT(error_beside_outlier(plain, rows), 0.9);
    EXPECT_LT(error_beside_outlier(at_once(*fitted("innerq3", Operand::key, kDim, rows, {}), rows, kDim), rows), 0.5);
}

// One vector for all heads: the largest factor of any head.
TEST(InnerQ, OneVectorServesAllHeads) {
    const Rows         wild = with_outlier_channel(6), calm = gaussian_rows(kN, kDim, 7);
    const LayerSamples layer{Operand::key, kDim, {{calm, {}}, {wild, {}}}};
    const auto         per_head = make_method("innerq3")->fit(layer, 0), shared = make_method("innerqv3")->fit(layer, 0);
    const auto         of_wild = make_method("innerqv3")->fit(layer, 1);
    EXPECT_NE(at_once(*per_head, calm, kDim), at_once(*shared, calm, kDim));
    EXPECT_EQ(at_once(*of_wild, calm, kDim), at_once(*shared, calm, kDim));
}
