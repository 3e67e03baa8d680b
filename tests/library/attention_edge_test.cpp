// Attention at its edges: nothing visible, NaN, single keys, stale cells, repeatability, refused shapes.
#include <gtest/gtest.h>

#include <map>

#include "attention_case.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

template <class Test> void for_every_level(Test test) {
    IsaRestorer restore;
    for (const std::string& isa : isa_names()) {
        SCOPED_TRACE(isa);
        ASSERT_TRUE(set_isa(isa).ok());
        test();
    }
}

} // namespace

TEST(AttentionEdge, FullyMaskedRowsAreZero) {
    for (const int n_tokens : {3, 20})
        for (const bool sinks : {false, true}) {
            AttentionCase c;
            c.n_tokens = n_tokens, c.n_kv = 1300, c.threads = 2, c.n_kv_heads = 1, c.mask = MaskType::kF32, c.sinks = sinks;
            AttentionData data(c); // token 1 sees nothing
            for_every_level([&] {
                const std::vector<float> out = data.run();
                for (int x = 0; x < c.dv; x++) {
                    ASSERT_EQ(data.row(out, 0, 1, 0)[x], 0.0f);
                    ASSERT_NE(data.row(out, 0, 2, 0)[x], 0.0f);
                }
            });
        }
}

TEST(AttentionEdge, NoKeysGiveZeros) {
    for_every_level([] {
        for (const bool sinks : {false, true}) {
            AttentionCase c;
            c.n_kv = 0, c.n_tokens = 2, c.sinks = sinks;
            AttentionData            data(c);
            const std::vector<float> out = data.run();
            for (int h = 0; h < 2; h++)
                for (int x = 0; x < c.dv; x++) ASSERT_EQ(data.row(out, 0, 1, h)[x], 0.0f);
        }
    });
}

// NaN or Inf in one query: that row answers NaN, the others what they answered before, bit for bit. Also with the keys split into runs.
TEST(AttentionEdge, NanStaysInItsRow) {
    for (const char* k : {"turbo3", "turbo8", "f16", "turbo3t"})
        for (const int n_tokens : {4, 20})
            for (const int threads : {1, 5}) {
                AttentionCase c;
                c.k = k, c.n_kv_heads = 1, c.group = 2, c.n_tokens = n_tokens, c.n_kv = 2100, c.threads = threads;
                c.dk = 96;
                AttentionData data(c);
                for_every_level([&] {
                    const std::vector<float> before = data.run();
                    for (const int at : {17, 70}) { // either block of the transform of 96 = 64 + 32, the other one stays finite
                        float&      value = data.query(0, 2, 1)[at];
                        const float good = value, bad = at == 17 ? NAN : INFINITY;
                        value                          = bad;
                        const std::vector<float> after = data.run();
                        value                          = good;
                        for (int t = 0; t < n_tokens; t++)
                            for (int h = 0; h < 2; h++)
                                for (int x = 0; x < c.dv; x++) {
                                    if (t == 2 && h == 1)
                                        ASSERT_TRUE(std::isnan(data.row(after, 0, t, h)[x]))
                                            << k << ", " << n_tokens << " tokens, " << threads << " threads, " << bad << ": "
                                            << data.row(after, 0, t, h)[x];
                                    else
                                        ASSERT_EQ(data.row(after, 0, t, h)[x], data.row(before, 0, t, h)[x])
                                            << k << ", token " << t << ", head " << h;
                                }
                    }
                });
            }
}

// Keys on different axes with a large norm: the query on one axis sees one key alone and returns its value row.
TEST(AttentionEdge, OneHotKeysReturnTheValueRow) {
    for (const char* k : {"turbo2", "turbo3", "turbo4", "turbo8", "f16", "turbo2t", "turbo3t", "turbo4t"})
        for (const char* v : {"turbo2", "turbo4", "turbo8", "f16", "turbo2t", "turbo3t", "turbo4t"})
            for (const int n_tokens : {1, 10}) {
                AttentionCase c;
                c.k = k, c.v = v, c.n_kv_heads = 1, c.n_kv = 64, c.n_tokens = n_tokens;
                AttentionData data(c);
                for (int j = 0; j < 64; j++) {
                    std::vector<float> key(64, 0.0f);
                    key[j] = 4000.0f;
                    ASSERT_EQ(data.k().write(0, 0, j, key.data()), RowStatus::kOk);
                }
                for (int t = 0; t < n_tokens; t++) {
                    std::fill_n(data.query(0, t, 0), 64, 0.0f);
                    data.query(0, t, 0)[(7 * t + 3) % 64] = 10.0f;
                }
                for_every_level([&] {
                    const std::vector<float> out = data.run();
                    for (int t = 0; t < n_tokens; t++) {
                        std::vector<float> want(64);
                        data.v().read(0, 0, (7 * t + 3) % 64, want.data());
                        double norm = 0;
                        for (const float x : want) norm += double(x) * x;
                        // weight 1 quantises exactly; f32 transform and, on AVX2, 255/255.4 of the step
                        for (int x = 0; x < 64; x++)
                            ASSERT_NEAR(data.row(out, 0, t, 0)[x], want[x], 0.002 * std::sqrt(norm)) << k << "/" << v << ", token " << t;
                    }
                });
            }
}

// Cells that are masked or lie behind n_kv may hold anything: not a bit of the output changes. An f16 layer stores NaN and Inf as they
// come (stock f16 caches do, and skip masked keys); a slot that ran into NaN must not reach the others.
TEST(AttentionEdge, StaleF16CellsDoNotMatter) {
    for_every_level([] {
        for (const auto& [k, v] : {std::pair{"f16", "turbo3"}, {"turbo3", "f16"}, {"f16", "f16"}})
            for (const int n_tokens : {1, 12})
                for (const int64_t cell : {3, 33, 100, 104})
                    for (const float bad : {NAN, INFINITY, -INFINITY, 1e6f}) { // 1e6 is Inf in f16
                        AttentionCase c;
                        c.k = k, c.v = v, c.n_kv_heads = 1, c.n_kv = 100, c.n_tokens = n_tokens, c.mask = MaskType::kF32;
                        AttentionData data(c);
                        if (cell < 100)
                            for (int t = 0; t < n_tokens; t++) data.mask()[data.mask_at(0, t) + static_cast<size_t>(cell)] = -INFINITY;
                        const std::vector<float> before = data.run(), junk(64, bad);
                        (void)data.k().write(0, 0, cell, junk.data());
                        (void)data.v().write(0, 0, cell, junk.data());
                        if (!std::isfinite(bad) &&
                            (k == std::string("turbo3") || v == std::string("turbo3"))) { // refused: zero rows, and still masked
                            std::vector<float> zero(64);
                            (k == std::string("turbo3") ? data.k() : data.v()).read(0, 0, cell, zero.data());
                            ASSERT_EQ(zero, std::vector<float>(64, 0.0f));
                        }
                        ASSERT_EQ(data.run(), before) << k << "/" << v << ", cell " << cell << ", " << n_tokens << " tokens, " << bad;
                    }
    });
}

// The same for stale rows whose fp16 scale is NaN or Inf: the encoder makes none, but a damaged state file holds what it holds.
TEST(AttentionEdge, StaleBrokenScalesDoNotMatter) {
    for (const Format* f : transformed_formats())
        for (const int n_tokens : {1, 12})
            for (const int64_t cell : {3, 33, 100, 104}) {
                AttentionCase c;
                c.k = c.v = f->name, c.n_kv_heads = 1, c.n_kv = 100, c.n_tokens = n_tokens, c.mask = MaskType::kF32;
                AttentionData data(c);
                if (cell < 100)
                    for (int t = 0; t < n_tokens; t++) data.mask()[data.mask_at(0, t) + static_cast<size_t>(cell)] = -INFINITY;
                std::map<std::string, std::vector<float>> before;
                for_every_level([&] { before[kernels().name] = data.run(); });
                for (const uint8_t high : {0x7c, 0x7e, 0xfc}) {
                    std::vector<uint8_t> bytes(f->row_bytes(64), 0x5a);
                    bytes[0] = 0, bytes[1] = high;
                    data.k().write_canonical(0, 0, cell, bytes.data());
                    data.v().write_canonical(0, 0, cell, bytes.data());
                    for_every_level([&] {
                        ASSERT_EQ(data.run(), before[kernels().name])
                            << f->name << ", cell " << cell << ", " << n_tokens << " tokens, scale " << int(high);
                    });
                }
            }
}

// Work is merged in a fixed order: the same bits whatever the threads' timing.
TEST(AttentionEdge, ResultsDoNotDependOnTiming) {
    for (const int n_tokens : {1, 10}) {
        AttentionCase c;
        c.n_kv = 3000, c.threads = 5, c.n_tokens = n_tokens;
        AttentionData data(c);
        for_every_level([&] {
            const std::vector<float> first = data.run();
            for (int i = 0; i < 10; i++) ASSERT_EQ(data.run(), first);
        });
    }
}

// Queries far outside the usual: tiny ones weigh all keys alike (the mean of the values), huge ones pick one key. Nothing overflows.
TEST(AttentionEdge, HugeAndTinyQueries) {
    for_every_level([] {
        for (const double deviation : {1e-38, 1e-20, 1e20, 1e30}) { // scores near 0 -> the mean of all; enormous -> one key
            AttentionCase c;
            c.n_kv_heads = 1, c.n_kv = 70, c.q_deviation = deviation;
            AttentionData            data(c);
            const std::vector<float> out = data.run();
            std::vector<float>       row(64);
            double                   worst = 0, nearest = INFINITY;
            std::vector<double>      mean(64, 0.0);
            for (int j = 0; j < 70; j++) {
                data.v().read(0, 0, j, row.data());
                double distance = 0;
                for (int x = 0; x < 64; x++) mean[x] += row[x] / 70.0, distance += std::fabs(row[x] - data.row(out, 0, 0, 0)[x]);
                nearest = std::min(nearest, distance / 64);
            }
            for (int x = 0; x < 64; x++) worst = std::max(worst, std::fabs(data.row(out, 0, 0, 0)[x] - mean[x]));
            EXPECT_LT(deviation < 1 ? worst : nearest, 0.01) << deviation;
        }
    });
}

TEST(AttentionEdge, RefusesImpossibleArguments) {
    AttentionCase      c;
    AttentionData      data(c);
    std::vector<float> out(4096);
    AttentionArgs      good;
    good.k = &data.k(), good.v = &data.v(), good.q = data.q().data(), good.out = out.data();
    good.n_heads = 2, good.n_kv_heads = 2, good.n_kv = 65;
    AttentionJob job;
    ASSERT_TRUE(job.prepare(good, 1).ok());
    const auto refused = [&](auto change) {
        AttentionArgs a = good;
        change(a);
        const Status s = job.prepare(a, 1);
        return s.code() == StatusCode::kInvalidArgument && !s.message().empty();
    };
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k = nullptr; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.v = nullptr; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.q = nullptr; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.out = nullptr; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_heads = 3; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_heads = 0; }));
    for (const float scale : {-1.0f, NAN, INFINITY}) EXPECT_TRUE(refused([&](AttentionArgs& a) { a.scale = scale; })) << scale;
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_kv_heads = 0; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_tokens = 0; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_streams = 2; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k_stream0 = 1; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.v_head0 = 1; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k_head0 = -1; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k_cell0 = 1; })) << "not a whole tile";
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.v_cell0 = 64; })) << "reaches behind the last cell";
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_kv = 100; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.n_kv = -1; }));
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k_cell0 = a.v_cell0 = 64, a.n_kv = INT64_MAX; })) << "the sum wraps around";
    EXPECT_TRUE(refused([](AttentionArgs& a) { a.k_stream0 = a.v_stream0 = std::numeric_limits<int>::max(); }));
}

// Sparse V: ten tiles, of which the mask terms push all but the third and the last so far down that no weight reaches the threshold. Tiles
// are skipped only once a larger weight is known: the first two come before. What is left out is below threshold times the number of keys.
TEST(AttentionEdge, SparseValues) {
    IsaRestorer restore;
    for (const int n_tokens : {1, 40})
        for (const char* format : {"turbo4", "turbo8", "turbo3t"}) {
            AttentionCase c;
            c.k = c.v = format, c.dk = c.dv = 64, c.n_kv_heads = 1, c.n_tokens = n_tokens, c.n_kv = 640, c.mask = MaskType::kF32,
            c.q_deviation = 0.1;
            AttentionData full(c);
            for (int t = 0; t < n_tokens; t++)
                for (int j = 0; j < c.n_kv; j++)
                    full.mask()[full.mask_at(0, t) + static_cast<size_t>(j)] = j / 64 == 2 || j / 64 == 9 ? 0.0f : -20.0f;
            c.sparse_v = 1e-6f; // e^-20 = 2e-9, scores add e^±1
            AttentionData sparse(c);
            sparse.mask() = full.mask();
            full.make_reference();
            for (const std::string& isa : isa_names()) {
                ASSERT_TRUE(set_isa(isa).ok());
                const std::vector<float> want = full.run(), got = sparse.run();
                EXPECT_EQ(full.v_tiles().skipped, 0) << isa;
                EXPECT_EQ(full.complaint(got, isa), "") << isa; // 640 * 2e-9 is nothing beside f32
                if (isa == "scalar") {                          // the reference skips nothing and counts nothing
                    EXPECT_EQ(sparse.v_tiles().seen, 0);
                    EXPECT_EQ(got, want);
                    continue;
                }
                const TileCounts n = sparse.v_tiles();
                EXPECT_GT(n.seen, 0) << isa;
                EXPECT_EQ(n.seen % 10, 0) << isa;
                EXPECT_EQ(n.skipped * 10, n.seen * 6) << isa << ": tiles 3 to 8";
            }
        }
}
