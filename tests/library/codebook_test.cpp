// Levels recomputed from scratch, what is derived from them, and the distortion the formats promise.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

#include "base/half.h"
#include "codec/codebook_tables.h"
#include "codec/oracle.h"
#include "codec/transform.h"
#include "codec/trellis.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double below(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

// Lloyd-Max for N(0,1): every level is the mean of its cell, ∫xφ / ∫φ = (φ(a) - φ(b)) / (Φ(b) - Φ(a)); cells end halfway.
// Positive half of 2n levels, ascending.
std::vector<double> lloyd_max(int n) {
    std::vector<double> level(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) level[i] = 3.0 * (i + 0.5) / n;
    for (int round = 0; round < 20000; round++) {
        double moved = 0, a = 0;
        for (int i = 0; i < n; i++) {
            const bool   last = i + 1 == n;
            const double b    = last ? INFINITY : (level[i] + level[i + 1]) / 2;
            const double mass = last ? below(-a) : below(b) - below(a);
            const double mean = (density(a) - (last ? 0 : density(b))) / mass;
            moved             = std::max(moved, std::fabs(mean - level[i]));
            level[i] = mean, a = b;
        }
        if (moved < 1e-13) break;
    }
    return level;
}

// Levels at the quantiles (i + 1/2)/2n: the equal-probability mistake.
std::vector<double> equal_probability(int n) {
    std::vector<double> level(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) {
        double       lo = 0, hi = 9;
        const double want = 0.5 + (i + 0.5) / (2.0 * n);
        for (int k = 0; k < 80; k++) (below((lo + hi) / 2) < want ? lo : hi) = (lo + hi) / 2;
        level[i] = lo;
    }
    return level;
}

std::span<const double> table(int bits) {
    if (bits == 2) return kLevels2;
    if (bits == 3) return kLevels3;
    return kLevels4;
}

struct Expected {
    int    bits;
    double db;
};
constexpr Expected kExpected[] = {{2, 9.30}, {3, 14.62}, {4, 20.22}};

struct ExpectedFormat {
    const char* name;
    double      db;
};
constexpr ExpectedFormat kFormats[] = {{"turbo2", 9.30},   {"turbo3", 14.62},  {"turbo4", 20.22},
                                       {"turbo2t", 10.80}, {"turbo3t", 16.22}, {"turbo4t", 22.08}};

double decibel(double signal, double noise) { return 10 * std::log10(signal / noise); }

// Distortion of a set of positive levels with nearest-level decisions, coordinate by coordinate on N(0,1).
double coordinate_db(std::span<const double> half, int n) {
    Random random(11);
    double signal = 0, noise = 0;
    for (int i = 0; i < n; i++) {
        const double x    = random.normal();
        double       best = INFINITY;
        for (const double l : half) best = std::min(best, std::fabs(std::fabs(x) - l));
        signal += x * x, noise += best * best;
    }
    return decibel(signal, noise);
}

// Distortion of whole rows through encode and decode.
double row_db(const Format& f, int d, int values) {
    Random             random(12);
    double             signal = 0, noise = 0;
    std::vector<float> back(static_cast<size_t>(d));
    for (int r = 0; r < values / d; r++) {
        const std::vector<float> x = gaussian(random, static_cast<size_t>(d));
        CodedRow                 row;
        EXPECT_EQ(encode_row(f, d, x.data(), row), RowStatus::kOk);
        decode_row(f, d, row, back.data());
        for (int i = 0; i < d; i++) signal += double(x[i]) * x[i], noise += (double(x[i]) - back[i]) * (double(x[i]) - back[i]);
    }
    return decibel(signal, noise);
}

} // namespace

TEST(Codebook, LevelsAreLloydMax) {
    for (const auto [bits, db] : kExpected) {
        const std::vector<double> want = lloyd_max(1 << (bits - 1));
        ASSERT_EQ(want.size(), table(bits).size());
        for (size_t i = 0; i < want.size(); i++) EXPECT_NEAR(table(bits)[i], want[i], 1e-6) << bits << " bit, level " << i;
    }
}

TEST(Codebook, LevelsOfRecordAreInt8) {
    for (const auto [bits, db] : kExpected) {
        const Codebook&           c    = codebook(bits);
        const std::vector<double> half = lloyd_max(1 << (bits - 1));
        const int                 h    = static_cast<int>(half.size());
        ASSERT_EQ(c.n, 1 << bits);
        EXPECT_NEAR(c.unit * 127, half.back(), 1e-6);
        for (int i = 0; i < h; i++) {
            EXPECT_EQ(c.level[h + i], std::lround(half[i] * 127 / half.back())) << bits << " bit, level " << i;
            EXPECT_EQ(c.level[h - 1 - i], -c.level[h + i]);
        }
        for (int i = 0; i + 1 < c.n; i++) { // halfway between neighbours, in 2048ths
            const auto   at = [&](int k) { return k < h ? -half[h - 1 - k] : half[k - h]; };
            const double t  = 2048 * (at(i) + at(i + 1)) / 2;
            EXPECT_NEAR(c.threshold[i], t, 0.5 + 0.002) << bits << " bit, threshold " << i;
            if (i) {
                EXPECT_LT(c.threshold[i - 1], c.threshold[i]);
            }
        }
        EXPECT_EQ(c.threshold[h - 1], 0);
    }
}

// Fixed-point decisions against the exact nearest real level over all of int16. Thresholds are integers and positions above one belong
// to the upper level, so per threshold at most one of the 65536 values (the tie region of one step) can differ.
TEST(Codebook, FixedPointDecidesLikeNearest) {
    for (const auto [bits, db] : kExpected) {
        const Codebook&         c      = codebook(bits);
        std::span<const double> half   = table(bits);
        const int               h      = static_cast<int>(half.size());
        int                     differ = 0;
        for (int v = -32768; v <= 32767; v++) {
            int code = 0, nearest = 0;
            for (int k = 0; k + 1 < c.n; k++) code += v > c.threshold[k];
            double best = INFINITY;
            for (int k = 0; k < c.n; k++) {
                const double l = k < h ? -half[h - 1 - k] : half[k - h];
                if (std::fabs(v / 2048.0 - l) < best) best = std::fabs(v / 2048.0 - l), nearest = k;
            }
            differ += code != nearest;
        }
        EXPECT_LE(differ, c.n - 1) << bits;
    }
}

// Measurement A: coordinate by coordinate, unit variance, no row scale. Two-sided.
TEST(Distortion, CoordinateWise) {
    for (const auto [bits, db] : kExpected) EXPECT_NEAR(coordinate_db(table(bits), 1000000), db, 0.05) << bits << " bit, dB";
}

// The same of trellis codes, in segments of 32 values.
TEST(Distortion, TrellisCoordinateWise) {
    struct Case {
        int    bits, head_dim;
        double db;
    };
    for (const auto [bits, d, db] : {Case{2, 128, 10.80}, {3, 128, 16.22}, {4, 128, 22.08}}) {
        Random               random(11);
        std::vector<double>  x(static_cast<size_t>(d));
        std::vector<int16_t> fixed(x.size());
        std::vector<uint8_t> codes(x.size());
        std::vector<int8_t>  level(x.size());
        const double         limit  = trellis_metric(bits).limit;
        double               signal = 0, noise = 0;
        for (int r = 0; r < (1 << 20) / d; r++) {
            for (size_t i = 0; i < x.size(); i++) {
                x[i]     = random.normal();
                fixed[i] = static_cast<int16_t>(std::clamp(std::nearbyint(x[i] * kTrellisSteps), -limit, limit));
            }
            trellis_search(bits, d, fixed.data(), codes.data());
            trellis_levels(trellis(bits), d, codes.data(), level.data());
            for (size_t i = 0; i < x.size(); i++) {
                const double error = x[i] - level[i] * static_cast<double>(trellis(bits).unit);
                signal += x[i] * x[i], noise += error * error;
            }
        }
        EXPECT_NEAR(decibel(signal, noise), db, 0.05) << bits << " bit, dB";
    }
}

// The levels of record instead of the real ones: noise 43 dB down on top, which shifts 20.22 dB by 10 log10(1 + 10^-2.28) = 0.023 dB at
// most.
TEST(Distortion, Int8LevelsCostNothing) {
    for (const auto [bits, db] : kExpected) {
        const Codebook&     c = codebook(bits);
        std::vector<double> half;
        for (int i = c.n / 2; i < c.n; i++) half.push_back(c.unit * c.level[i]);
        EXPECT_NEAR(coordinate_db(half, 1000000), db, 0.05) << bits << " bit, dB";
    }
}

// Measurement B: whole rows of 128 through the codec, 1M values. The scale keeps the norm instead of the least error: with
// distortion D of the codes the error is |y|² + |ŷ|² - 2yŷ = 2 (1 - sqrt(1 - D)) instead of D, 0.14 / 0.04 / 0.01 dB more at 2 / 3 / 4 bit.
// Finite d gains up to 0.15 dB: the row's own norm replaces σ. Two-sided.
double norm_keeping_db(double db) { return -10 * std::log10(2 * (1 - std::sqrt(1 - std::pow(10, -db / 10)))); }

TEST(Distortion, RowsOf128) {
    for (const auto [name, db] : kFormats) {
        const double got = row_db(*find_format(name), 128, 1 << 20);
        EXPECT_GE(got, norm_keeping_db(db) - 0.05) << name;
        EXPECT_LE(got, norm_keeping_db(db) + 0.15 + 0.05) << name;
    }
}

// Uniform codes of a Gaussian row of 128: largest of 128 is 2.8 σ on average, step 2.8/127, so 10 log10(12 · (127/2.8)²) ≈ 43.9 dB.
TEST(Distortion, Turbo8) {
    const double got = row_db(*find_format("turbo8"), 128, 1 << 20);
    EXPECT_GE(got, 43.4);
    EXPECT_LE(got, 44.6);
}

// The gain of finite d falls with d; the transform of 96 = 64 + 32 or 576 = 512 + 64 must not cost anything.
TEST(Distortion, OtherHeadDims) {
    for (const auto [name, db] : kFormats)
        for (const int d : {64, 96, 192, 576}) {
            const double got = row_db(*find_format(name), d, 1 << 18);
            EXPECT_GE(got, norm_keeping_db(db) - 0.05) << name << ", d " << d;
            EXPECT_LE(got, norm_keeping_db(db) + (d < 128 ? 0.35 : 0.20)) << name << ", d " << d;
        }
}

// Negative control: 4-bit levels at equal-probability quantiles (outermost 1.86 σ) or pulled in to 1.97 σ must fall out of the interval.
TEST(Distortion, EqualProbabilityTableFails) {
    const std::vector<double> quantiles = equal_probability(8);
    EXPECT_NEAR(quantiles.back(), 1.863, 0.001);
    EXPECT_LT(coordinate_db(quantiles, 1000000), 20.22 - 1.0);
    std::vector<double> pulled(kLevels4.begin(), kLevels4.end());
    for (double& l : pulled) l *= 1.97 / kLevels4.back();
    EXPECT_LT(coordinate_db(pulled, 1000000), 20.22 - 1.0);
}
