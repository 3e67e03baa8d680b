// Attention over rows around a mean, under dense transforms, and with exact rows beside the codes, against the fp64 oracle on every level.
// Bounds: attention_bounds.cpp. Who is exact for which query: exact_tables.h.
#include <gtest/gtest.h>

#include "attention_case.h"

using namespace tightkv;
using namespace tightkv::test;

TEST(AttentionWithMeans, EveryPairOfFormats) {
    for (const Format& k : all_formats())
        for (const Format& v : all_formats())
            for (const bool dense : {false, true})
                for (const int n_tokens : {1, 7}) {
                    AttentionCase c;
                    c.k = k.name, c.v = v.name, c.group = 2, c.n_tokens = n_tokens, c.n_kv = 130, c.mask = MaskType::kF16;
                    c.k_mean = 3, c.v_mean = 2, c.dense = dense;
                    expect_within_bounds(c);
                }
}

TEST(AttentionWithMeans, MasksBiasCapAndSinks) {
    for (const std::vector<MaskType>& masks : {std::vector{MaskType::kNone}, {MaskType::kF16, MaskType::kF32}})
        for (const float max_bias : {0.0f, 8.0f})
            for (const float softcap : {0.0f, 2.0f})
                for (const bool sinks : {false, true})
                    for (const int n_tokens : {1, 6}) {
                        AttentionCase c;
                        c.group = 3, c.n_tokens = n_tokens, c.n_kv = 100, c.mask = masks[0], c.max_bias = max_bias, c.softcap = softcap,
                        c.sinks = sinks, c.k_mean = 1, c.v_mean = 1;
                        expect_within_bounds(c, masks, {1});
                    }
}

TEST(AttentionWithMeans, HeadDimsStreamsThreadsAndOffsets) {
    const int dims[][2] = {{32, 32}, {96, 64}, {128, 128}, {256, 192}};
    for (const auto& d : dims)
        for (const bool dense : {false, true})
            for (const int n_tokens : {1, 10}) {
                AttentionCase c;
                c.dk = d[0], c.dv = d[1], c.n_tokens = n_tokens, c.n_kv = 1100, c.n_streams = 2, c.threads = 3, c.offsets = true;
                c.n_kv_heads = d[0] < 128 ? 2 : 1, c.mask = MaskType::kF16, c.k_mean = 2, c.v_mean = 1, c.dense = dense, c.sinks = true;
                if (d[0] > 128) c.n_kv = 150;
                expect_within_bounds(c);
            }
}

TEST(ExactRows, EveryPairOfFormats) {
    for (const Format& k : all_formats())
        for (const Format& v : all_formats())
            for (const int n_tokens : {1, 4, 7}) {
                AttentionCase c;
                c.k = k.name, c.v = v.name, c.group = 2, c.n_tokens = n_tokens, c.n_kv = 130, c.mask = MaskType::kF16;
                c.sink = 2, c.window = 20;
                expect_within_bounds(c);
            }
}

// Batches of the sizes around the limits, windows smaller and larger than the batch and than everything; cells in use again.
TEST(ExactRows, WindowsAndBatches) {
    for (const int window : {0, 1, 5, 64, 4000})
        for (const int sink : {0, 3})
            for (const int n_tokens : {1, 2, 4, 5, 30})
                for (const bool reuse : {false, true})
                    for (const int written_by : {1, 33}) {
                        if (!window && !sink) continue;
                        AttentionCase c;
                        c.dk = c.dv = 32, c.n_tokens = n_tokens, c.n_kv = 110, c.mask = MaskType::kF16, c.group = 2;
                        c.sink = sink, c.window = window, c.reuse = reuse, c.written_by = written_by;
                        expect_within_bounds(c);
                    }
}

// Masks of 0 and -inf become bits, and the rows that neighbouring tokens see are put side by side: blocks that see one tile of them and
// more, windows that begin inside a tile and outside the table, blocks of several heads, tables of several streams.
TEST(ExactRows, MasksOfBits) {
    for (const int window : {0, 32, 70})
        for (const int sink : {0, 3})
            for (const int n_tokens : {4, 9, 40})
                for (const int group : {1, 3}) {
                    if (!window && !sink) continue;
                    AttentionCase c;
                    c.dk = c.dv = 32, c.n_kv_heads = 1, c.n_tokens = n_tokens, c.n_kv = 130, c.mask = MaskType::kF16, c.group = group,
                    c.terms = false;
                    c.sink = sink, c.window = window, c.reuse = sink > 0, c.written_by = 33, c.k_mean = group == 3, c.sinks = group == 1;
                    expect_within_bounds(c, {MaskType::kF16, MaskType::kF32}, {1});
                }
    for (const auto& [softcap, threads] : {std::pair{0.0f, 1}, std::pair{2.0f, 5}}) {
        AttentionCase c;
        c.k = "turbo3t", c.n_tokens = 20, c.group = 2, c.n_kv = 1100, c.mask = MaskType::kF16, c.terms = false, c.threads = threads;
        c.n_streams = 2, c.offsets = true, c.sinks = true, c.sink = 4, c.window = 32, c.written_by = 60, c.reuse = true;
        c.softcap = softcap, c.k_mean = c.v_mean = 1;
        expect_within_bounds(c);
    }
}

TEST(ExactRows, NothingButExactRows) { // the window is larger than all that was written
    for (const int n_tokens : {1, 4, 12})
        for (const bool terms : {false, true}) {
            AttentionCase c;
            c.k = "turbo2", c.v = "turbo2", c.n_tokens = n_tokens, c.n_kv = 40, c.mask = MaskType::kF16, c.window = 100, c.terms = terms;
            AttentionData data(c);
            data.make_reference();
            // Codes of 2 bits are off by a third; here nothing but f32 rounds.
            EXPECT_LT(data.relative_rms(data.run()), 1e-5);
            expect_within_bounds(c);
        }
}

TEST(ExactRows, MasksBiasCapSinksAndMeans) {
    for (const std::vector<MaskType>& masks : {std::vector{MaskType::kNone}, {MaskType::kF16, MaskType::kF32}})
        for (const float max_bias : {0.0f, 8.0f})
            for (const float softcap : {0.0f, 2.0f})
                for (const bool sinks : {false, true})
                    for (const double mean : {0.0, 2.0})
                        for (const int n_tokens : {1, 3, 8}) {
                            AttentionCase c;
                            c.group = 3, c.n_tokens = n_tokens, c.n_kv = 100, c.mask = masks[0], c.max_bias = max_bias, c.softcap = softcap,
                            c.sinks = sinks, c.k_mean = mean, c.v_mean = mean, c.sink = 2, c.window = 10;
                            expect_within_bounds(c, masks, {1});
                        }
}

TEST(ExactRows, StreamsThreadsOffsetsAndDense) {
    for (const int n_streams : {1, 3})
        for (const int n_tokens : {1, 4, 10})
            for (const bool dense : {false, true}) {
                AttentionCase c;
                c.dk = c.dv = 32, c.n_streams = n_streams, c.n_tokens = n_tokens, c.n_kv = 1100, c.offsets = true, c.mask = MaskType::kF32,
                c.sinks = true, c.sink = 4, c.window = 48, c.written_by = 60, c.reuse = true;
                c.k_mean = 1, c.v_mean = 1, c.dense = dense;
                expect_within_bounds(c, {c.mask}, {1, 5});
            }
    AttentionCase c; // blocks of rows, each with its part of exact rows
    c.dk = c.dv = 32, c.n_kv_heads = 1, c.group = 3, c.n_tokens = 130, c.n_kv = 300, c.mask = MaskType::kF16, c.threads = 2, c.window = 70;
    expect_within_bounds(c);
}

// However many threads share the work: the same bits, as runs of codes and the exact rows are merged in a fixed order.
TEST(ExactRows, ThreadsChangeNothingWithTheSameRuns) {
    for (const int n_tokens : {1, 9}) {
        AttentionCase c;
        c.n_tokens = n_tokens, c.n_kv = 2100, c.mask = MaskType::kF16, c.window = 100, c.sink = 4, c.threads = 3, c.k_mean = 1;
        AttentionData            data(c);
        const std::vector<float> first = data.run();
        for (int i = 0; i < 20; i++) ASSERT_EQ(data.run(), first);
    }
}

TEST(ExactRows, BoundsHavePower) {
    IsaRestorer restore;
    for (const int n_tokens : {1, 12}) {
        AttentionCase c;
        c.k = c.v = "turbo2", c.dk = c.dv = 128, c.n_tokens = n_tokens, c.n_kv = 70 + n_tokens, c.q_deviation = 2;
        c.k_mean = 2, c.v_mean = 1, c.window = 20, c.sink = 2, c.sinks = true;
        for (const std::string& isa : isa_names()) {
            ASSERT_TRUE(set_isa(isa).ok());
            AttentionData data(c);
            data.make_reference();
            ASSERT_EQ(data.complaint(data.run(), isa), "");
            // The same data, other rows of it exact. One row more or less does not stand out of the integers' own errors.
            AttentionCase other = c;
            other.window        = isa == "scalar" ? 19 : 1;
            AttentionData narrow(other);
            EXPECT_NE(data.complaint(narrow.run(), isa), "") << isa << ": window too small";
            other = c, other.sink = 0;
            AttentionData fewer(other);
            if (isa == "scalar") {
                EXPECT_NE(data.complaint(fewer.run(), isa), "") << "the sinks lost";
            }
            other = c, other.k_mean = 2.2;
            AttentionData off(other);
            EXPECT_NE(data.complaint(off.run(), isa), "") << isa << ": another mean";
        }
    }
}
