// The oracle itself: its fast transform against the definition of the Hadamard matrix, and the library's against both.
#include <gtest/gtest.h>

#include "codec/oracle.h"
#include "codec/transform.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

class OracleTransform : public testing::TestWithParam<int> {};

TEST_P(OracleTransform, MatchesTheDefinition) {
    const int           d = GetParam();
    Random              random(1);
    std::vector<double> x(static_cast<size_t>(d));
    for (double& v : x) v = random.normal();
    const std::vector<double> fast = oracle::forward(x), slow = oracle::forward_by_definition(x), back = oracle::inverse(fast);
    double                    norm_x = 0, norm_y = 0;
    for (int i = 0; i < d; i++) {
        EXPECT_NEAR(fast[i], slow[i], 1e-12) << i;
        EXPECT_NEAR(back[i], x[i], 1e-12) << i;
        norm_x += x[i] * x[i], norm_y += fast[i] * fast[i];
    }
    EXPECT_NEAR(norm_y / norm_x, 1.0, 1e-13); // orthogonal: the blocks' 1/sqrt(n) are right
}

// Each of log2(n) butterfly levels and two sign products rounds once: |error| <= (log2 n + 3) 2^-24 Σ|x| / sqrt(n) of the block.
TEST_P(OracleTransform, LibraryWithinRounding) {
    const int          d = GetParam();
    Random             random(2);
    std::vector<float> x = gaussian(random, static_cast<size_t>(d)), y = x;
    const Transform&   t = transform_for(d);
    EXPECT_EQ(t.blocks(), oracle::blocks(d));
    t.forward(y.data());
    const std::vector<double> want = oracle::forward(std::vector<double>(x.begin(), x.end()));
    int                       at   = 0;
    for (const int n : t.blocks()) {
        double sum = 0;
        for (int i = at; i < at + n; i++) sum += std::fabs(x[i]);
        const double bound = (std::log2(n) + 3) * 0x1p-24 * sum / std::sqrt(n);
        for (int i = at; i < at + n; i++) EXPECT_NEAR(y[i], want[i], bound) << "coordinate " << i;
        at += n;
    }
    EXPECT_EQ(at, d);
}

TEST_P(OracleTransform, SignsAreBalanced) { // a broken generator shows as all-equal signs
    const int d = GetParam();
    for (const int which : {0, 1}) {
        double sum = 0;
        for (int i = 0; i < d; i++) sum += oracle::sign(i, which);
        EXPECT_LE(std::fabs(sum), 4 * std::sqrt(d)) << which;
    }
    int differ = 0;
    for (int i = 0; i < d; i++) differ += oracle::sign(i, 0) != oracle::sign(i, 1);
    EXPECT_GT(differ, d / 8);
}

INSTANTIATE_TEST_SUITE_P(HeadDims, OracleTransform, testing::ValuesIn(head_dims()), testing::PrintToStringParamName());

TEST(OracleBlocks, LargestFirst) {
    EXPECT_EQ(oracle::blocks(96), (std::vector<int>{64, 32}));
    EXPECT_EQ(oracle::blocks(576), (std::vector<int>{512, 64}));
    EXPECT_EQ(oracle::blocks(1024), (std::vector<int>{1024}));
    EXPECT_EQ(oracle::blocks(992), (std::vector<int>{512, 256, 128, 64, 32}));
}
