// Transforms with a mean and dense matrices: what they promise about inverses and scalar products, and rows coded under them; every ISA
// level gives the scalar bits.
#include "codec/transform.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/half.h"
#include "codec/oracle.h"
#include "codec/row.h"
#include "cpu/kernel_table.h"
#include "dense_transform.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

constexpr double u = 0x1p-24;

// |M| |x|, M [d][d] row-major; by columns: |M^T| |x|.
std::vector<double> absolute_product(const std::vector<double>& m, const std::vector<double>& x, bool transposed = false) {
    const size_t        d = x.size();
    std::vector<double> y(d, 0.0);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++) y[i] += std::fabs(m[transposed ? j * d + i : i * d + j]) * std::fabs(x[j]);
    return y;
}

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double norm(const std::vector<float>& x) {
    double sum = 0;
    for (const float v : x) sum += double(v) * v;
    return std::sqrt(sum);
}

std::vector<float> through_half(std::vector<float> x) {
    for (float& v : x) v = half_to_float(float_to_half(v));
    return x;
}

// A mean of `ratio` times the norm of rows of unit deviation.
std::vector<float> mean_of_norm(Random& random, int d, double ratio) { return gaussian(random, static_cast<size_t>(d), ratio); }

bool finite(const std::vector<float>& x) {
    return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

} // namespace

class Transforms : public testing::TestWithParam<int> {};

// A dense product sums d terms in order: off by at most d u |M| |x|, 1 u more for the rounded matrix and another for the row that came in.
TEST_P(Transforms, DenseIsUndoneAndKeepsScalarProducts) {
    const int            d      = GetParam();
    const double         factor = (d + 2) * u;
    Random               random(51);
    const DenseTransform dense = random_dense(random, d, 4);
    const auto           t     = make_transform(dense);
    ASSERT_TRUE(t->dense() && !t->plain() && !t->mean());
    for (int i = 0; i < 5; i++) {
        const std::vector<float> k = gaussian(random, static_cast<size_t>(d)), q = gaussian(random, static_cast<size_t>(d));
        std::vector<float>       y = k, p = q;
        t->forward(y.data());
        t->query(p.data());
        std::vector<double> ey = absolute_product(dense.matrix, doubles(k)), ep = absolute_product(dense.inverse, doubles(q), true);
        for (double& e : ey) e *= factor;
        for (double& e : ep) e *= factor;
        for (int r = 0; r < d; r++) { // the product itself, from the definition
            double want = 0;
            for (int c = 0; c < d; c++) want += dense.matrix[size_t(r) * d + c] * k[c];
            ASSERT_NEAR(y[r], want, ey[r]) << r;
        }
        double got = 0, want = 0, bound = 0;
        for (int c = 0; c < d; c++) {
            got += double(p[c]) * y[c], want += double(q[c]) * k[c];
            bound += std::fabs(p[c]) * ey[c] + ep[c] * std::fabs(y[c]) + ep[c] * ey[c];
        }
        EXPECT_NEAR(got, want, bound);

        std::vector<double> back = absolute_product(dense.inverse, ey); // the error that came in, then its own
        const auto          own  = absolute_product(dense.inverse, doubles(y));
        std::vector<float>  x = y, o = y;
        t->inverse(x.data());
        t->output(o.data());
        EXPECT_TRUE(same_bits(x, o)) << "without a mean they are one";
        for (int c = 0; c < d; c++) ASSERT_NEAR(x[c], k[c], back[c] + factor * own[c]) << c;
    }
}

// The mean is taken off before and put back after everything else; queries and outputs do not see it.
TEST_P(Transforms, MeanIsTakenOffAndPutBack) {
    const int                d = GetParam();
    Random                   random(52);
    const std::vector<float> mean  = mean_of_norm(random, d, 3);
    const DenseTransform     dense = random_dense(random, d, 2);
    for (const bool is_dense : {false, true}) {
        const auto bare = is_dense ? make_transform(dense) : std::make_shared<const Transform>(d);
        const auto t    = is_dense ? make_transform(dense, mean) : std::make_shared<const Transform>(d, mean);
        EXPECT_FALSE(t->plain());
        ASSERT_NE(t->mean(), nullptr);
        const std::vector<float> x = gaussian(random, static_cast<size_t>(d));
        std::vector<float>       a = x, b = x;
        for (int i = 0; i < d; i++) b[i] -= mean[i];
        bare->forward(b.data());
        t->forward(a.data());
        EXPECT_TRUE(same_bits(a, b));
        t->inverse(a.data());
        bare->inverse(b.data());
        for (int i = 0; i < d; i++) b[i] += mean[i];
        EXPECT_TRUE(same_bits(a, b));
        std::vector<float> q = x, o = x;
        t->query(q.data()), t->output(o.data());
        a = b = x;
        bare->query(a.data()), bare->inverse(b.data());
        EXPECT_TRUE(same_bits(q, a));
        EXPECT_TRUE(same_bits(o, b));
        if (!is_dense) {
            std::vector<float> f = x;
            bare->forward(f.data());
            EXPECT_TRUE(same_bits(q, f)) << "an orthogonal T is its own inverse transposed";
        }
    }
}

TEST_P(Transforms, EveryLevelGivesTheScalarBits) {
    const int             d = GetParam();
    Random                random(53);
    std::vector<NamedRow> rows = nasty_rows(d);
    for (int i = 0; i < 20; i++) rows.push_back({"random", gaussian(random, static_cast<size_t>(d), std::exp2(random.below(20) - 10))});
    struct Part {
        const char* name;
        void (Transform::*scalar)(float*) const;
        void (*KernelTable::*kernel)(const Transform&, float*);
    };
    constexpr Part parts[] = {{"forward", &Transform::forward, &KernelTable::forward},
                              {"inverse", &Transform::inverse, &KernelTable::inverse},
                              {"query", &Transform::query, &KernelTable::query},
                              {"output", &Transform::output, &KernelTable::output}};
    for (const NamedTransform& n : all_transforms(random, d, 2))
        for (const NamedRow& r : rows) {
            if (r.name == "largest float") continue; // overflows to NaN, whose payload nobody promises
            for (const Part& part : parts) {
                std::vector<float> want = r.x;
                ((*n.t).*part.scalar)(want.data());
                for (const KernelTable* level : available_kernels()) {
                    std::vector<float> got = r.x;
                    (level->*part.kernel)(*n.t, got.data());
                    EXPECT_TRUE(same_bits(want, got))
                        << level->name << ", " << part.name << ", " << n.name << ", d " << d << ", " << r.name;
                }
            }
            for (const Format* f : transformed_formats()) {
                CodedRow want;
                std::memset(&want, 0, sizeof want);
                const RowStatus    status = encode_row(*f, *n.t, r.x.data(), want);
                std::vector<float> decoded(static_cast<size_t>(d)), x(static_cast<size_t>(d));
                decode_row(*f, *n.t, want, decoded.data());
                for (const KernelTable* level : available_kernels()) {
                    CodedRow got;
                    std::memset(&got, 0xff, sizeof got);
                    ASSERT_EQ(level->encode(*f, *n.t, r.x.data(), got), status);
                    ASSERT_EQ(got.scale, want.scale) << level->name << ", " << f->name << ", " << n.name << ", " << r.name;
                    ASSERT_EQ(std::memcmp(got.codes, want.codes, static_cast<size_t>(d)), 0)
                        << level->name << ", " << f->name << ", " << n.name << ", " << r.name;
                    level->decode(*f, *n.t, want, x.data());
                    ASSERT_TRUE(same_bits(decoded, x)) << level->name << ", " << f->name << ", " << n.name << ", " << r.name;
                }
            }
        }
}

// With a mean a row is the code of what is left, put back: exactly the plain codec of x - mean when nothing is rounded to f16 in between,
// and the error is that of the small row, not of the large one.
TEST_P(Transforms, ARowIsTheCodeOfWhatTheMeanLeaves) {
    const int d = GetParam();
    Random    random(54);
    for (const Format* f : transformed_formats())
        for (const double ratio : {0.0, 1.0, 10.0, 100.0}) {
            const std::vector<float> mean = mean_of_norm(random, d, ratio);
            const Transform          t(d, mean);
            for (int i = 0; i < 10; i++) {
                const std::vector<float> x = gaussian(random, static_cast<size_t>(d));
                std::vector<float>       shifted(static_cast<size_t>(d)), rest(static_cast<size_t>(d)), got(static_cast<size_t>(d));
                for (int j = 0; j < d; j++) shifted[j] = x[j] + mean[j], rest[j] = shifted[j] - mean[j];
                CodedRow row;
                ASSERT_EQ(encode_row(*f, t, shifted.data(), row), RowStatus::kOk);
                decode_row(*f, t, row, got.data());
                double error = 0;
                for (int j = 0; j < d; j++) error += std::pow(double(got[j]) - shifted[j], 2);
                // Largest distortion of a row of 32: 2 bits at 9.24 dB is |e|² = 0.119 |x|²; half as much again for the scatter of single
                // rows, and what f16 (the fixed point) and f32 round of the mean: (2^-11 + 2^-23) |mean| at most.
                const double allowed = std::sqrt(1.5 * 0.25) * norm(rest) + (0x1p-11 + 0x1p-23) * norm(mean);
                EXPECT_LE(std::sqrt(error), allowed) << f->name << ", ratio " << ratio;
            }
        }
}

TEST_P(Transforms, EncodeIsAProjection) {
    const int            d = GetParam();
    Random               random(55);
    const DenseTransform dense = random_dense(random, d, 2);
    for (const Format* f : transformed_formats())
        for (const double ratio : {0.0, 0.1, 1.0, 3.0, 10.0})
            for (const bool is_dense : {false, true}) {
                const std::vector<float> mean = mean_of_norm(random, d, ratio);
                const auto               t    = is_dense ? make_transform(dense, mean) : std::make_shared<const Transform>(d, mean);
                const int                n    = (is_dense ? 6000 : 30000) / d;
                for (int i = 0; i < n; i++) {
                    std::vector<float> x = gaussian(random, static_cast<size_t>(d));
                    for (int j = 0; j < d; j++) x[j] += mean[j];
                    CodedRow first, second;
                    ASSERT_EQ(encode_row(*f, *t, x.data(), first), RowStatus::kOk);
                    decode_row(*f, *t, first, x.data());
                    x = through_half(x);
                    ASSERT_TRUE(finite(x));
                    ASSERT_EQ(encode_row(*f, *t, x.data(), second), RowStatus::kOk);
                    ASSERT_EQ(second.scale, first.scale) << f->name << ", ratio " << ratio << ", dense " << is_dense << ", row " << i;
                    ASSERT_EQ(std::memcmp(second.codes, first.codes, static_cast<size_t>(d)), 0)
                        << f->name << ", ratio " << ratio << ", dense " << is_dense << ", row " << i;
                }
            }
}

TEST_P(Transforms, RefusesWhatIsNotFinite) {
    const int d = GetParam();
    Random    random(56);
    for (const NamedTransform& n : all_transforms(random, d, 1))
        for (const Format* f : transformed_formats())
            for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY})
                for (const int at : {0, 17, d - 1}) {
                    std::vector<float> x = gaussian(random, static_cast<size_t>(d));
                    x[at]                = bad;
                    for (const KernelTable* level : available_kernels()) {
                        CodedRow row;
                        std::memset(&row, 0xa5, sizeof row);
                        ASSERT_EQ(level->encode(*f, *n.t, x.data(), row), RowStatus::kRefused) << level->name << ", " << n.name;
                        ASSERT_EQ(row.scale, 0);
                        for (int i = 0; i < d; i++) ASSERT_EQ(row.codes[i], 0);
                    }
                }
}

// A mean that no key has: the row is small beside it and must stay finite; where the difference itself is too large it is refused.
TEST_P(Transforms, HugeMeans) {
    const int   d   = GetParam();
    const float max = std::numeric_limits<float>::max();
    Random      random(57);
    for (const Format* f : transformed_formats()) {
        for (const float size : {1e4f, 1e6f, 1e20f, max}) {
            const Transform          t(d, std::vector<float>(static_cast<size_t>(d), size));
            const std::vector<float> x = gaussian(random, static_cast<size_t>(d));
            std::vector<float>       y(static_cast<size_t>(d));
            CodedRow                 row;
            const RowStatus          status = encode_row(*f, t, x.data(), row);
            ASSERT_NE(status, RowStatus::kRefused) << size;
            ASSERT_LE(row.scale, kHalfMax);
            decode_row(*f, t, row, y.data());
            ASSERT_TRUE(finite(y)) << f->name << ", mean " << size;
            // The mean itself is a row of nothing.
            ASSERT_EQ(encode_row(*f, t, t.mean(), row), RowStatus::kOk);
            ASSERT_EQ(row.scale, 0);
            decode_row(*f, t, row, y.data());
            for (const float v : y) ASSERT_EQ(v, size);
        }
        const Transform          t(d, std::vector<float>(static_cast<size_t>(d), max));
        const std::vector<float> x(static_cast<size_t>(d), -max); // the difference is infinite
        CodedRow                 row;
        EXPECT_EQ(encode_row(*f, t, x.data(), row), RowStatus::kRefused);
        EXPECT_EQ(row.scale, 0);
    }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, Transforms, testing::Values(32, 64, 96, 128, 192, 256, 576), testing::PrintToStringParamName());
