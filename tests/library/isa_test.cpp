// Write path of every ISA level against the scalar reference, bit for bit; and how a level is chosen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "codec/oracle.h"
#include "cpu/kernel_table.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

const KernelTable* level_named(const std::string& name) {
    for (const KernelTable* k : available_kernels())
        if (name == k->name) return k;
    return nullptr;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The levels beside the scalar one; tests of all of them ask the reference once.
std::vector<const KernelTable*> fast_levels() {
    std::vector<const KernelTable*> out;
    for (const KernelTable* k : available_kernels())
        if (k != &scalar_kernels()) out.push_back(k);
    return out;
}

std::vector<NamedRow> unpleasant_rows(int d) {
    std::vector<NamedRow> rows = nasty_rows(d);
    for (NamedRow& r : concentrated_rows(d, [](const std::vector<double>& y) { return oracle::inverse(y); })) rows.push_back(std::move(r));
    return rows;
}

class Levels : public testing::Test {
protected:
    void SetUp() override {
        if (levels_.empty()) GTEST_SKIP() << "skipped: no level but the scalar one here";
    }
    // Every level's row is the reference's, bit for bit; what the reference says is in `want`.
    RowStatus expect_same_row(const Format& f, const Transform& t, const float* x, CodedRow& want) {
        std::memset(&want, 0, sizeof want);
        const RowStatus status = encode_row(f, t, x, want);
        for (const KernelTable* level : levels_) {
            CodedRow got;
            std::memset(&got, 0xff, sizeof got);
            EXPECT_EQ(level->encode(f, t, x, got), status) << level->name;
            EXPECT_EQ(got.scale, want.scale) << level->name;
            EXPECT_EQ(std::memcmp(got.codes, want.codes, static_cast<size_t>(t.head_dim())), 0) << level->name;
        }
        return status;
    }
    const std::vector<const KernelTable*> levels_ = fast_levels();
};

} // namespace

TEST_F(Levels, EncodeAndDecodeBitForBit) {
    for (const int d : head_dims()) {
        const Transform&      t    = transform_for(d);
        std::vector<NamedRow> rows = unpleasant_rows(d);
        Random                random(21);
        for (int i = 0; i < 100000 / d; i++)
            rows.push_back({"random", gaussian(random, static_cast<size_t>(d), std::exp2(random.below(40) - 20))});
        for (int at = 0; at < d; at += 7) { // NaN or Inf in every lane of a vector
            rows.push_back({"refused", gaussian(random, static_cast<size_t>(d))});
            rows.back().x[at] = at % 2 ? NAN : -INFINITY;
        }
        for (const Format* f : transformed_formats())
            for (const NamedRow& r : rows) {
                CodedRow want;
                expect_same_row(*f, t, r.x.data(), want);
                std::vector<float> x(static_cast<size_t>(d)), y(static_cast<size_t>(d));
                decode_row(*f, d, want, x.data());
                for (const KernelTable* level : levels_) {
                    level->decode(*f, t, want, y.data());
                    EXPECT_TRUE(same_bits(x, y)) << level->name;
                }
                ASSERT_FALSE(HasFailure()) << f->name << ", d " << d << ", " << r.name;
            }
    }
}

// Values exactly at and next to the decision edges: a rounding mode or a comparison that differs shows here and hardly in random data.
TEST_F(Levels, DecideEdgesAlike) {
    const int        d = 64;
    const Transform& t = transform_for(d);
    Random           random(23);
    for (const Format* f : transformed_formats())
        for (int i = 0; i < 3000; i++) {
            std::vector<double> y(d);
            for (double& v : y) v = (random.below(12) - 6) * 0.25; // few distinct values: many ties
            std::vector<double> x64 = oracle::inverse(y);
            std::vector<float>  x(x64.begin(), x64.end());
            CodedRow            want;
            expect_same_row(*f, t, x.data(), want);
            ASSERT_FALSE(HasFailure()) << f->name;
        }
}

// Together, under transforms of their own, and whatever stands beside whatever.
TEST_F(Levels, EncodeRowsTogetherAsAlone) {
    Random random(25);
    for (const int d : {32, 128, 576}) {
        std::vector<NamedRow> rows = unpleasant_rows(d);
        for (int i = 0; i < 60; i++) rows.push_back({"random", gaussian(random, static_cast<size_t>(d), std::exp2(random.below(90) - 45))});
        rows.push_back({"refused", std::vector<float>(static_cast<size_t>(d), NAN)});
        std::vector<float> mean  = gaussian(random, static_cast<size_t>(d));
        const Transform&   plain = transform_for(d);
        const Transform    shifted(d, mean);
        for (const Format* f : transformed_formats())
            for (int i = 0; i < 200; i++) {
                const int        n = 1 + random.below(kEncodeRows), shifts = random.below(8) == 0;
                const Transform* t[kEncodeRows];
                const float*     x[kEncodeRows];
                CodedRow         want[kEncodeRows], got[kEncodeRows], *at[kEncodeRows];
                RowStatus        wanted[kEncodeRows], status[kEncodeRows];
                for (int r = 0; r < n; r++) {
                    t[r] = shifts && random.below(2) ? &shifted : &plain, at[r] = &got[r],
                    x[r]      = rows[static_cast<size_t>(random.below(static_cast<int>(rows.size())))].x.data();
                    wanted[r] = encode_row(*f, *t[r], x[r], want[r]);
                }
                for (const KernelTable* level : levels_) {
                    std::memset(got, 0xff, sizeof got);
                    level->encode_rows(*f, n, t, x, at, status);
                    for (int r = 0; r < n; r++) {
                        ASSERT_EQ(status[r], wanted[r]) << level->name << ", " << f->name << ", d " << d;
                        ASSERT_EQ(got[r].scale, want[r].scale) << level->name << ", " << f->name << ", d " << d;
                        ASSERT_EQ(std::memcmp(got[r].codes, want[r].codes, static_cast<size_t>(d)), 0)
                            << level->name << ", " << f->name << ", d " << d;
                    }
                }
            }
    }
}

// Rows whose best path costs more than the first search of the trellis formats can hold (trellis_search.h): one segment has all the norm.
TEST_F(Levels, SearchCostlyRowsAlike) {
    const int        d = 512;
    const Transform& t = transform_for(d);
    Random           random(24);
    for (const char* name : {"turbo2t", "turbo3t", "turbo4t"})
        for (int i = 0; i < 100; i++) {
            std::vector<double> y(d);
            for (int c = 0; c < d; c++) y[static_cast<size_t>(c)] = c % 4 ? 0.01 * random.normal() : random.below(2) ? 2.9 : -2.9;
            const std::vector<double> x64 = oracle::inverse(y);
            std::vector<float>        x(x64.begin(), x64.end());
            CodedRow                  want;
            expect_same_row(*find_format(name), t, x.data(), want);
            ASSERT_FALSE(HasFailure()) << name;
        }
}

// One level by name: that it is there at all, too.
class Isa : public testing::TestWithParam<std::string> {
protected:
    void SetUp() override {
        level_ = level_named(GetParam());
        if (!level_) GTEST_SKIP() << "skipped: no " << GetParam() << " here";
    }
    const KernelTable* level_ = nullptr;
};

TEST_P(Isa, TransformsBitForBit) {
    for (const int d : head_dims()) {
        const Transform&      t = transform_for(d);
        Random                random(22);
        std::vector<NamedRow> rows = nasty_rows(d);
        for (int i = 0; i < 50; i++) rows.push_back({"random", gaussian(random, static_cast<size_t>(d))});
        for (const NamedRow& r : rows) {
            std::vector<float> a = r.x, b = r.x;
            t.forward(a.data());
            level_->forward(t, b.data());
            if (r.name != "largest float") { // overflows to Inf and NaN; payloads of NaN are nobody's promise
                ASSERT_TRUE(same_bits(a, b)) << "forward, d " << d << ", " << r.name;
                t.inverse(a.data());
                level_->inverse(t, b.data());
                ASSERT_TRUE(same_bits(a, b)) << "inverse, d " << d << ", " << r.name;
            }
        }
    }
}

#if defined(__aarch64__)
const auto levels = testing::Values("neon");
#else
const auto levels = testing::Values("avx2", "avxvnni", "avx512vnni", "avx512");
#endif
INSTANTIATE_TEST_SUITE_P(Levels, Isa, levels, [](const auto& info) { return info.param; });

TEST(IsaChoice, ScalarIsAlwaysThereAndWeakest) {
    ASSERT_FALSE(available_kernels().empty());
    EXPECT_STREQ(available_kernels().front()->name, "scalar");
    for (const KernelTable* k : available_kernels()) {
        EXPECT_TRUE(k->encode && k->decode && k->forward && k->inverse && k->attend_decode && k->attend_batched) << k->name;
        EXPECT_EQ(level_named(k->name), k) << "a name twice";
    }
}

TEST(IsaChoice, CanBeForcedByName) {
    const std::string before = kernels().name;
    for (const KernelTable* k : available_kernels()) {
        ASSERT_TRUE(set_isa(k->name).ok());
        EXPECT_EQ(&kernels(), k);
    }
    for (const char* none : {"", "avx1024", "AVX2", "scalar "}) {
        const KernelTable* chosen = &kernels();
        const Status       s      = set_isa(none);
        EXPECT_EQ(s.code(), StatusCode::kUnsupported) << none;
        EXPECT_NE(s.message().find(std::string("'") + none + "'"), std::string::npos) << s.message();
        EXPECT_NE(s.message().find("scalar"), std::string::npos) << "names the levels there are: " << s.message();
        EXPECT_EQ(&kernels(), chosen) << "a refused name changes nothing";
    }
    ASSERT_TRUE(set_isa(before).ok());
}
