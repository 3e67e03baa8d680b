// fp16 conversion against a reference in double arithmetic.
#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>

#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

double half_value(uint16_t h) { // by definition; finite
    const int e = h >> 10 & 31, m = h & 1023;
    return (h & 0x8000 ? -1 : 1) * (e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25));
}

// Round to nearest even through the neighbours' values, all exact in double.
uint16_t reference(float f) {
    const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
    const double   x    = std::fabs(static_cast<double>(f));
    if (x >= 65520) return sign | 0x7c00;
    uint16_t lo = 0, hi = 0x7bff; // largest half <= x by bisection: halves order like their bits
    while (lo < hi) {
        const uint16_t mid = static_cast<uint16_t>((lo + hi + 1) / 2);
        (half_value(mid) <= x) ? lo = mid : hi = static_cast<uint16_t>(mid - 1);
    }
    const double below = x - half_value(lo), above = (lo == 0x7bff ? 65536 : half_value(static_cast<uint16_t>(lo + 1))) - x;
    if (above < below || (above == below && lo % 2)) lo++;
    return sign | lo;
}

} // namespace

TEST(Half, AllHalvesRoundTrip) {
    for (int h = 0; h < 65536; h++) {
        const float f = half_to_float(static_cast<uint16_t>(h));
        if ((h & 0x7c00) == 0x7c00) {
            if (h & 1023) {
                ASSERT_TRUE(std::isnan(f)) << h;
                const uint16_t back = float_to_half(f);
                ASSERT_TRUE((back & 0x7c00) == 0x7c00 && (back & 1023)) << h << ": a NaN stays one";
            } else {
                ASSERT_TRUE(std::isinf(f) && std::signbit(f) == (h >> 15)) << h;
                ASSERT_EQ(float_to_half(f), h);
            }
            continue;
        }
        ASSERT_EQ(f, half_value(static_cast<uint16_t>(h))) << h;
        ASSERT_EQ(std::signbit(f), h >> 15) << h;
        ASSERT_EQ(float_to_half(f), h);
    }
}

TEST(Half, MidpointsAndTheirNeighbours) {
    for (int h = 0; h <= 0x7bff; h++) {
        const double next = h == 0x7bff ? 65536 : half_value(static_cast<uint16_t>(h + 1));
        const float  mid  = static_cast<float>((half_value(static_cast<uint16_t>(h)) + next) / 2); // exact
        for (const float f : {mid, std::nextafter(mid, 0.0f), std::nextafter(mid, INFINITY)}) {
            ASSERT_EQ(float_to_half(f), reference(f)) << f;
            ASSERT_EQ(float_to_half(-f), reference(-f)) << f;
        }
    }
}

TEST(Half, RandomFloats) {
    Random random(51);
    for (int i = 0; i < 300000; i++) {
        const float f = std::bit_cast<float>(static_cast<uint32_t>(random.next()));
        if (!std::isnan(f)) {
            ASSERT_EQ(float_to_half(f), reference(f)) << f;
        }
        const float g = static_cast<float>(random.normal() * std::exp2(random.below(44) - 27));
        ASSERT_EQ(float_to_half(g), reference(g)) << g;
    }
}

TEST(Half, SpecialValues) {
    EXPECT_EQ(float_to_half(65504.0f), kHalfMax);
    EXPECT_EQ(float_to_half(65519.996f), kHalfMax);
    EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
    EXPECT_EQ(float_to_half(-INFINITY), 0xfc00);
    EXPECT_EQ(float_to_half(0x1p-25f), 0) << "tie to even";
    EXPECT_EQ(float_to_half(std::nextafter(0x1p-25f, 1.0f)), 1);
    EXPECT_EQ(float_to_half(1e-45f), 0);
    EXPECT_EQ(float_to_half(-0.0f), 0x8000);
    static_assert(half_to_float(0x3c00) == 1.0f && float_to_half(-2.0f) == 0xc000, "usable at compile time");
}
