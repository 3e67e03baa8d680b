// What holds for every method of the list.
#include <set>

#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {
constexpr int    kDim = 64;
constexpr size_t kN   = 100; // three groups of tokens and a part of one
} // namespace

TEST(Registry, NamesAreUniqueAndOthersUnknown) {
    const auto names = method_names();
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
    for (const std::string& name : names) EXPECT_TRUE(make_method(name)) << name;
    for (const char* name : {"", "cat", "cat5", "outlier4.5", "outlier2", "turbo3 "}) EXPECT_FALSE(make_method(name)) << name;
}

// Rows written one by one, in odd pieces or all at once end up the same: the decode path and the batched path measure one method.
TEST(Registry, PiecesDoNotMatter) {
    const Rows rows = gaussian_rows(kN, kDim, 1), queries = gaussian_rows(kN, kDim, 2);
    for (const std::string& name : method_names())
        for (const Operand operand : {Operand::key, Operand::value}) {
            const auto m    = fitted(name, operand, kDim, rows, queries);
            const Rows once = at_once(*m, rows, kDim);
            for (const size_t step : {size_t{1}, size_t{7}, size_t{32}}) EXPECT_EQ(feed(*m, rows, kDim, step), once) << name << " " << step;
        }
}

TEST(Registry, EveryBitHelpsAndZerosStayFinite) {
    const Rows rows = gaussian_rows(kN, kDim, 3), queries = gaussian_rows(kN, kDim, 4), zeros(kN * kDim, 0.0f);
    const auto names = method_names();
    for (const Operand operand : {Operand::key, Operand::value}) {
        std::string stem;
        double      before = 0;
        for (const std::string& name : names) {
            const auto   m   = fitted(name, operand, kDim, rows, queries);
            const double now = squared_error(at_once(*m, rows, kDim), rows);
            const auto   of  = name.substr(0, name.find_first_of("234"));
            if (of == stem) {
                EXPECT_LT(now, before / 2) << name; // a bit more is a quarter of the error for uniform codes, a little more for others
            }
            EXPECT_GT(now, 0) << name;
            stem = of, before = now;
            for (const float v : at_once(*m, zeros, kDim)) ASSERT_EQ(v, 0.0f) << name;
        }
    }
}

TEST(Registry, BitsByHand) {
    const auto at = [](const char* name, Operand o, int rows) { return bits_per_value(make_method(name)->bits(o, kDim), kDim, rows); };
    EXPECT_DOUBLE_EQ(at("turbo3", Operand::key, 512), 3.25);
    EXPECT_DOUBLE_EQ(at("rotor2", Operand::value, 512), 2.25);
    EXPECT_DOUBLE_EQ(at("qjl3", Operand::key, 512), 3 + 0.25 + 1 + 0.25); // codes, scale, signs, |r|
    EXPECT_DOUBLE_EQ(at("qjl3", Operand::value, 512), 3.25);
    EXPECT_DOUBLE_EQ(at("kivi2", Operand::key, 512), 3 + 15.5 * 13 / 512); // scale and zero: 1; rows in f16 cost 13 bits more
    EXPECT_DOUBLE_EQ(at("kivi2", Operand::value, 512), 3 + 32.0 * 13 / 512);
    EXPECT_DOUBLE_EQ(at("innerq4", Operand::key, 512), 5 + 36.0 * 11 / 512 + 16.0 / kModelRows);
    EXPECT_DOUBLE_EQ(at("innerq4", Operand::value, 512), 5 + 19.5 * 11 / 512);
    EXPECT_DOUBLE_EQ(at("cat3", Operand::key, 512), 3.25 + 16.0 * kDim / kModelRows);
    EXPECT_DOUBLE_EQ(at("catv3", Operand::key, 512), 3.25 + 16.0 / kModelRows);
    EXPECT_DOUBLE_EQ(at("squat2", Operand::key, 512), at("kivi2", Operand::key, 512) + 16.0 * 5 / kModelRows);
    EXPECT_DOUBLE_EQ(at("squatv2", Operand::key, 512), at("kivi2", Operand::key, 512) + 16.0 / kModelRows);
    EXPECT_DOUBLE_EQ(at("outlier2.5", Operand::key, 512), 2.5 + 2 * 16.0 / kDim + 1.0 / kModelRows);
    EXPECT_DOUBLE_EQ(at("outlier3.5", Operand::value, 2048), 3.5 + 2 * 16.0 / kDim + 1.0 / kModelRows);
}

TEST(Registry, RefusalNamesTheAcceptedHeadDims) {
    EXPECT_EQ(make_method("turbo3")->refusal(96), "");
    EXPECT_EQ(make_method("outlier2.5")->refusal(128), "");
    EXPECT_EQ(make_method("outlier2.5")->refusal(96), "head_dim 96; accepted: multiples of 64");
}
