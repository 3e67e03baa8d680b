// Attention of every ISA level against the fp64 oracle: formats, shapes and features. Bounds: attention_bounds.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "attention_case.h"

using namespace tightkv;
using namespace tightkv::test;

TEST(Attention, EveryPairOfFormats) { // few rows stay on the packed codes, 14 rows go through expanded tiles
    for (const Format& k : all_formats())
        for (const Format& v : all_formats())
            for (const int n_tokens : {1, 7}) {
                AttentionCase c;
                c.k = k.name, c.v = v.name, c.group = 2, c.n_tokens = n_tokens, c.n_kv = 257, c.mask = MaskType::kF16;
                expect_within_bounds(c);
            }
}

TEST(Attention, HeadDims) {
    const int         dims[][2] = {{32, 32}, {96, 96}, {128, 128}, {192, 128}, {64, 160}, {256, 256}, {576, 512}, {320, 96}, {1024, 1024}};
    const char* const formats[][2] = {{"turbo4", "turbo3"},  {"turbo2", "turbo4"},   {"turbo3", "turbo2"},   {"turbo8", "f16"},
                                      {"f16", "turbo8"},     {"turbo4t", "turbo3t"}, {"turbo3t", "turbo2t"}, {"turbo2t", "turbo4"},
                                      {"turbo3", "turbo4t"}, {"turbo8", "turbo2t"},  {"turbo4t", "f16"}};
    for (const auto& d : dims)
        for (const auto& f : formats)
            for (const int n_tokens : {3, 10}) { // one row alone: RowsAreThoseOfEachAlone
                AttentionCase c;
                c.dk = d[0], c.dv = d[1], c.k = f[0], c.v = f[1], c.n_kv_heads = 1, c.n_tokens = n_tokens, c.n_kv = 70;
                expect_within_bounds(c);
            }
}

// Rows that are read together share what is unpacked, and on some levels two parts of a tile; each is what it is alone, bit for bit.
TEST(Attention, RowsAreThoseOfEachAlone) {
    IsaRestorer restore;
    for (const char* format : {"turbo2", "turbo3", "turbo4", "turbo2t", "turbo3t", "turbo4t", "turbo8"})
        for (const int d : {32, 96, 128, 256}) {
            AttentionCase c;
            c.k = c.v = format, c.dk = c.dv = d, c.n_kv_heads = 1, c.n_kv = 80;
            AttentionData alone(c);
            for (const int rows : {2, 3, 4, 5, 8}) {
                c.n_tokens = rows;
                AttentionData together(c); // the same seed: the same K and V
                for (const std::string& isa : isa_names()) {
                    ASSERT_TRUE(set_isa(isa).ok());
                    const std::vector<float> out = together.run();
                    for (int t = 0; t < rows; t++) {
                        std::copy_n(together.query(0, t, 0), d, alone.query(0, 0, 0));
                        const std::vector<float> one = alone.run();
                        ASSERT_EQ(std::memcmp(together.row(out, 0, t, 0), alone.row(one, 0, 0, 0), sizeof(float) * static_cast<size_t>(d)),
                                  0)
                            << isa << ", " << c.name() << ", row " << t;
                    }
                }
            }
        }
}

TEST(Attention, GroupsAndRows) {
    for (const auto& [k, v] :
         {std::pair{"turbo3", "turbo4"}, {"turbo4", "turbo2"}, {"turbo2t", "turbo3t"}, {"turbo3t", "turbo4t"}, {"turbo4t", "turbo2t"}})
        for (const int group : {1, 2, 3, 4, 8, 16})
            for (const int n_tokens : {1, 2, 3, 7, 8, 9}) {
                AttentionCase c;
                c.k = k, c.v = v, c.dk = 32, c.dv = 32, c.group = group, c.n_tokens = n_tokens, c.n_kv = 90, c.mask = MaskType::kF16;
                expect_within_bounds(c);
            }
    for (const int group : {5, 6, 7}) { // with the above, an instance of every number of rows
        AttentionCase c;
        c.k = "turbo3t", c.v = "turbo2t", c.dk = 96, c.dv = 64, c.group = group, c.n_kv = 70;
        expect_within_bounds(c);
    }
    for (const int n_tokens : {64, 130}) { // several blocks of rows, a ragged last one
        for (const int group : {1, 3}) {
            AttentionCase c;
            c.dk = 32, c.dv = 32, c.n_kv_heads = 1, c.group = group, c.n_tokens = n_tokens, c.n_kv = 200, c.mask = MaskType::kF32,
            c.threads = 2;
            expect_within_bounds(c);
        }
    }
}

TEST(Attention, Lengths) {
    for (const int n_kv : {1, 2, 63, 64, 65, 128, 257, 1000})
        for (const int n_tokens : {1, 9}) {
            AttentionCase c;
            c.n_kv = n_kv, c.n_tokens = n_tokens, c.threads = 2, c.mask = n_tokens < n_kv ? MaskType::kF16 : MaskType::kNone;
            expect_within_bounds(c);
        }
}

// Masks of 0 and -inf alone, which become bits where there are many rows.
TEST(Attention, MasksOfBits) {
    for (const char* f : {"turbo4", "turbo3t", "turbo8", "f16"})
        for (const int n_kv : {9, 63, 64, 65, 200, 1100})
            for (const int n_tokens : {3, 9, 50}) {
                AttentionCase c;
                c.k = c.v = f, c.dk = c.dv = 32, c.group = 3, c.n_tokens = n_tokens, c.n_kv = n_kv, c.mask = MaskType::kF16,
                c.terms     = false;
                c.n_streams = n_kv == 65 ? 2 : 1, c.offsets = n_kv == 65;
                c.softcap = n_kv == 63 ? 2.0f : 0.0f, c.sinks = n_tokens == 9;
                expect_within_bounds(c, {MaskType::kF16, MaskType::kF32}, {n_kv > 1000 ? 3 : 1});
            }
}

TEST(Attention, HundredThousandTokens) {
    AttentionCase c;
    c.dk = c.dv = 32, c.n_kv_heads = 1, c.n_kv = 100000, c.threads = 5, c.q_deviation = 3;
    expect_within_bounds(c);
}

TEST(Attention, MasksBiasCapAndSinks) { // six heads: no power of two, so ALiBi needs both of its series
    for (const std::vector<MaskType>& masks : {std::vector{MaskType::kNone}, {MaskType::kF16, MaskType::kF32}})
        for (const float max_bias : {0.0f, 8.0f})
            for (const float softcap : {0.0f, 2.0f})
                for (const bool sinks : {false, true})
                    for (const int n_tokens : {1, 6}) {
                        AttentionCase c;
                        c.group = 3, c.n_tokens = n_tokens, c.n_kv = 150, c.mask = masks[0], c.max_bias = max_bias, c.softcap = softcap,
                        c.sinks = sinks, c.q_deviation = 2;
                        expect_within_bounds(c, masks, {1});
                    }
}

TEST(Attention, StreamsThreadsAndOffsets) {
    for (const int n_streams : {1, 2, 3})
        for (const int n_tokens : {1, 10}) {
            AttentionCase c;
            c.dk = c.dv = 32, c.n_streams = n_streams, c.n_tokens = n_tokens, c.n_kv = 1100, c.offsets = true, c.mask = MaskType::kF32,
            c.sinks = true;
            expect_within_bounds(c, {c.mask}, {1, 2, 5});
        }
}

// Gaussian data, d = 128: the budget of the int8 operands as one figure. Query step of VNNI max|q'|/127 = 0.022 σ, of AVX2 (eight dims
// within 258) 0.057 σ; uniform rounding gives score errors of 0.6 % and 1.6 % of the scores' deviation, the weights add less than 1 %.
// Scores of deviation 4 put the weight on few keys, whose errors no longer average out: one draw then says little, so the mean of ten.
TEST(Attention, RelativeError) {
    IsaRestorer restore;
    for (const char* k : {"turbo2", "turbo3", "turbo4", "turbo2t", "turbo3t", "turbo4t"}) {
        constexpr int                                    kDraws = 10;
        std::map<std::pair<double, std::string>, double> mean;
        for (int draw = 0; draw < kDraws; draw++) {
            AttentionCase c;
            c.k = k, c.v = k, c.dk = c.dv = 128, c.group = 4, c.n_kv = 1000;
            AttentionData            data(c, 71 + static_cast<uint64_t>(draw));
            const std::vector<float> unit = data.q();
            data.read_rows();
            for (const double deviation : {0.5, 1.0, 2.0, 4.0}) {
                for (size_t i = 0; i < unit.size(); i++) data.q()[i] = static_cast<float>(deviation) * unit[i];
                data.ask_oracle(false);
                for (const std::string& isa : isa_names()) {
                    ASSERT_TRUE(set_isa(isa).ok());
                    mean[{deviation, isa}] += data.relative_rms(data.run()) / kDraws;
                }
            }
        }
        for (const auto& [of, error] : mean)
            EXPECT_LT(error, of.second == "scalar" ? 1e-5
                             : of.second != "avx2" ? 0.02
                                                   : 0.035)
                << k << ", " << of.second << ", query deviation " << of.first;
    }
}

// Negative controls: what a wrong kernel would do must not pass as rounding.
TEST(Attention, BoundsHavePower) {
    IsaRestorer restore;
    for (const int n_tokens : {1, 12}) {
        AttentionCase c;
        c.dk = c.dv = 128, c.group = 2, c.n_tokens = n_tokens, c.n_kv = 20 + n_tokens, c.mask = MaskType::kF32, c.q_deviation = 2;
        for (const std::string& isa : isa_names()) {
            ASSERT_TRUE(set_isa(isa).ok());
            AttentionData data(c);
            data.make_reference();
            ASSERT_EQ(data.complaint(data.run(), isa), "");
            EXPECT_NE(data.complaint(data.run(1.1f), isa), "") << isa << ": scale 10 % off";
            EXPECT_NE(data.complaint(data.run(1.0f, 1), isa), "") << isa << ": mask off by one key";
            std::vector<float> out = data.run();
            out[c.dv]              = 0;
            EXPECT_NE(data.complaint(out, isa), "") << isa << ": wrote behind a row";
            const std::vector<float> zero(128, 0.0f);
            ASSERT_EQ(data.v().write(0, 0, 4, zero.data()), RowStatus::kOk);
            EXPECT_NE(data.complaint(data.run(), isa), "") << isa << ": one value row lost";
        }
    }
}
