// The check that stands before every timing: right results pass, wrong ones do not.
#include <cmath>

#include <gtest/gtest.h>

#include "bench/contender.h"
#include "bench/encode_speed.h"
#include "bench/own_kernels.h"
#include "bench/rounds.h"
#include "cpu/kernel_table.h"

using namespace tightkv;
using namespace tightkv::bench;

namespace {

struct Case {
    AttentionShape shape;
    const char*    name;
};
const Case kCases[] = {{{128, 8, 2, 1, 300}, "decode"}, {{64, 3, 3, 1, 65}, "decode without groups"}, {{64, 4, 1, 40, 100}, "many rows"}};

// A side whose results are spoilt on the way out.
class Spoilt : public Contender {
public:
    Spoilt(std::unique_ptr<Contender> inner, std::function<void(std::vector<float>&)> spoil) : inner_(std::move(inner)), spoil_(spoil) {}
    void attend(int layer) override {
        inner_->attend(layer);
        out_.assign(inner_->output(), inner_->output() + size);
        spoil_(out_);
    }
    const float* output() const override { return out_.data(); }
    HeadRows     rows(int kv_head) const override { return inner_->rows(kv_head); }
    double       huge() const override { return 0; }
    size_t       size = 0;

private:
    std::unique_ptr<Contender>               inner_;
    std::function<void(std::vector<float>&)> spoil_;
    std::vector<float>                       out_;
};

class EveryIsa : public testing::TestWithParam<std::string> {
protected:
    void SetUp() override { ASSERT_TRUE(set_isa(GetParam()).ok()); }
    void TearDown() override { ASSERT_TRUE(set_isa(available_kernels().back()->name).ok()); }
};

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const KernelTable* k : available_kernels()) names.push_back(k->name);
    return names;
}

} // namespace

TEST_P(EveryIsa, RightResultsPass) {
    ThreadTeam team(2);
    for (const Case& c : kCases)
        for (const Format& f : all_formats()) {
            const AttentionData data(c.shape);
            const Verdict       v = make_tightkv(f, data, 1, team)->check(data);
            EXPECT_TRUE(v.ok) << c.name << ", " << f.name << ": " << v.max_rel_error << " of " << v.bound << ", " << v.where;
            EXPECT_GT(v.rows, 0);
            EXPECT_LT(v.bound, 0.1) << c.name << ", " << f.name; // else it would let anything through
        }
}

TEST_P(EveryIsa, WrongResultsFail) {
    ThreadTeam          team(1);
    const AttentionData data(kCases[0].shape);
    const auto          verdict = [&](std::function<void(std::vector<float>&)> spoil) {
        Spoilt s(make_tightkv(format(FormatId::turbo4), data, 1, team), std::move(spoil));
        s.size = data.shape.rows_floats();
        return s.check(data);
    };
    EXPECT_TRUE(verdict([](std::vector<float>&) {}).ok);
    const Verdict scaled = verdict([](std::vector<float>& out) {
        for (float& x : out) x *= 1.1f;
    });
    EXPECT_FALSE(scaled.ok);
    EXPECT_NEAR(scaled.max_rel_error, 0.1, 0.03);
    EXPECT_FALSE(verdict([](std::vector<float>& out) { out[5] = NAN; }).ok);
    EXPECT_FALSE(verdict([](std::vector<float>& out) { std::swap_ranges(out.begin(), out.begin() + 128, out.begin() + 128); }).ok)
        << "heads";
    EXPECT_FALSE(verdict([](std::vector<float>& out) { std::fill(out.begin(), out.end(), 0.0f); }).ok);
}

INSTANTIATE_TEST_SUITE_P(Bench, EveryIsa, testing::ValuesIn(isa_names()), [](const auto& i) { return i.param; });

// Against rows that are not those the result was computed from: one V row lost, or four of twenty keys (a single one may count for little).
TEST(BenchCheck, NoticesLostRows) {
    ThreadTeam          team(1);
    const AttentionData data({128, 4, 1, 1, 20});
    auto                side = make_tightkv(format(FormatId::turbo4), data, 1, team);
    side->attend(0);
    for (const bool v : {false, true}) {
        HeadRows rows = side->rows(0);
        EXPECT_TRUE(check_output(
                        data, [&](int) { return rows; }, side->output())
                        .ok);
        std::fill_n((v ? rows.v : rows.k).begin() + 4 * 128, (v ? 1 : 4) * 128, 0.0);
        EXPECT_FALSE(check_output(
                         data, [&](int) { return rows; }, side->output())
                         .ok)
            << (v ? "V" : "K");
    }
}

TEST(BenchCheck, RivalKernels) {
    if (!own_kernels_available()) GTEST_SKIP() << "needs AVX2";
    const AttentionShape shapes[] = {{128, 8, 2, 1, 1},   {32, 1, 1, 1, 63},   {64, 6, 2, 1, 1200},
                                     {96, 16, 2, 1, 130}, {128, 4, 1, 7, 200}, {64, 9, 3, 50, 300},
                                     {256, 2, 2, 33, 33}, {64, 12, 1, 1, 700}, {128, 2, 1, 130, 131}};
    for (const int threads : {1, 3}) {
        ThreadTeam team(threads);
        for (const AttentionShape& s : shapes)
            for (const char* which : {"f16", "f32"}) {
                const AttentionData data(s);
                const auto          side = make_own(which, data, 3e6, team);
                const Verdict       v    = side->check(data);
                EXPECT_TRUE(v.ok) << which << ", d " << s.head_dim << ", " << s.n_heads << "/" << s.n_kv_heads << " heads, " << s.n_tokens
                                  << " tokens, " << s.n_kv << " keys, " << threads << " threads: " << v.max_rel_error << " of " << v.bound;
                EXPECT_LT(v.max_rel_error, 1e-5);
            }
    }
}

TEST(BenchCheck, LayersHoldTheSameRows) {
    ThreadTeam          team(1);
    const AttentionData data({64, 4, 2, 1, 100});
    for (const bool own : {false, true}) {
        if (own && !own_kernels_available()) continue;
        const auto side = own ? make_own("f16", data, 1e6, team) : make_tightkv(format(FormatId::turbo3), data, 1e6, team);
        EXPECT_GT(side->layers, 3);
        EXPECT_GE(side->layers * side->layer_bytes, 1e6);
        side->attend(0);
        const std::vector<float> first(side->output(), side->output() + data.shape.rows_floats());
        side->attend(side->layers - 1);
        EXPECT_EQ(first, std::vector<float>(side->output(), side->output() + data.shape.rows_floats())) << side->name;
        EXPECT_GT(side->time(0.001), 0);
    }
}

TEST(BenchCheck, EncodersAreExact) {
    for (const Format& f : all_formats())
        if (f.transformed()) {
            EncodeSpeed e(f, 96);
            EXPECT_EQ(e.complaint(), "");
            EXPECT_GT(e.encode(0.001), 0);
            EXPECT_GT(e.write(Operand::V, 0.001), 0);
        }
}

TEST(BenchRounds, MedianAndSpread) {
    EXPECT_EQ(median({3, 1, 2}), 2);
    EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
    EXPECT_EQ(spread({2, 1, 3}), 1);
}

// Which of the sorted ratios bound the interval stands in every table of the sign test.
TEST(BenchRounds, PairedRatio) {
    const auto of = [](int n) { // ratios 1 … n, of rounds that took very different times
        std::vector<double> x, base;
        for (int i = 0; i < n; i++) {
            base.push_back(1 + 100.0 * (i % 3));
            x.push_back(base.back() * ((i * 7) % n + 1)); // 7 and n have no common factor: every ratio once
        }
        return paired_ratio(x, base);
    };
    const struct {
        int    n;
        double median, low, high;
    } table[] = {{1, 1, 1, 1}, {5, 3, 1, 5}, {6, 3.5, 1, 6}, {9, 5, 2, 8}, {15, 8, 4, 12}, {20, 10.5, 6, 15}, {41, 21, 14, 28}};
    for (const auto& want : table) {
        const PairedRatio got = of(want.n);
        EXPECT_DOUBLE_EQ(got.median, want.median) << want.n;
        EXPECT_DOUBLE_EQ(got.low, want.low) << want.n;
        EXPECT_DOUBLE_EQ(got.high, want.high) << want.n;
    }
    const PairedRatio many = of(10000);
    EXPECT_DOUBLE_EQ(many.low, 4902); // by exact sums of binomial coefficients
    EXPECT_DOUBLE_EQ(many.high, 5099);
}
