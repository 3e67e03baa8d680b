// Calibration: the transform is what its definition says, re-rotated statistics are those of rows that were rotated, and the point of it
// all: less variance in the scores than the Hadamard transform leaves.
#include "cache/calibrate.h"

#include <cmath>

#include <gtest/gtest.h>

#include "codec/row.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

constexpr int    kDim    = 32;
constexpr size_t kTokens = 4096;

// Rows with a mean and a few strong directions: x = A z + mean, [token][head][kDim].
std::vector<float> correlated(Random& random, size_t tokens, int heads, double spread, double mean) {
    std::vector<float>  out;
    const auto          n = static_cast<size_t>(kDim * heads);
    std::vector<double> mix(n * kDim), offset(n);
    for (size_t i = 0; i < mix.size(); i++) mix[i] = random.normal() * std::pow(spread, static_cast<double>(i % kDim) / kDim);
    for (double& v : offset) v = mean * random.normal();
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < n; i += kDim) {
            double z[kDim];
            for (double& v : z) v = random.normal();
            for (size_t r = 0; r < kDim; r++) {
                double x = offset[i + r];
                for (size_t j = 0; j < kDim; j++) x += mix[(i + r) * kDim + j] * z[j];
                out.push_back(static_cast<float>(x));
            }
        }
    return out;
}

Profile solved(const Calibration& c, int64_t offsets = 1) {
    Profile      p;
    const Status s = c.solve(offsets, p);
    EXPECT_TRUE(s.ok()) << s.message();
    return p;
}

// Mean variance over queries of the score error that `format` makes on these keys.
double score_error(const Transform& t, const std::vector<float>& keys, const std::vector<float>& queries, FormatId id) {
    double             total = 0;
    const Format&      f     = format(id);
    std::vector<float> errors;
    CodedRow           coded;
    for (size_t k = 0; k < 256; k++) {
        float y[kDim];
        EXPECT_EQ(encode_row(f, t, &keys[k * kDim], coded), RowStatus::kOk);
        decode_row(f, t, coded, y);
        for (size_t i = 0; i < kDim; i++) errors.push_back(y[i] - keys[k * kDim + i]);
    }
    for (size_t q = 0; q < 256; q++) {
        double sum = 0, squares = 0;
        for (size_t k = 0; k < 256; k++) {
            double e = 0;
            for (size_t i = 0; i < kDim; i++) e += static_cast<double>(errors[k * kDim + i]) * static_cast<double>(queries[q * kDim + i]);
            sum += e, squares += e * e;
        }
        total += squares / 256 - sum * sum / 65536;
    }
    return total / 256;
}

// Rotates every row of one head as RoPE would at `offset` positions later.
std::vector<float> rotated(std::vector<float> rows, const Rope& rope, double offset) {
    const size_t n = rope.frequencies.size();
    for (size_t t = 0; t < rows.size(); t += kDim)
        for (size_t i = 0; i < n; i++) {
            float &      x = rows[t + (rope.halves ? i : 2 * i)], &y = rows[t + (rope.halves ? i + n : 2 * i + 1)];
            const double c = std::cos(offset * rope.frequencies[i]), s = std::sin(offset * rope.frequencies[i]);
            const double a = static_cast<double>(x) * c - static_cast<double>(y) * s,
                         b = static_cast<double>(x) * s + static_cast<double>(y) * c;
            x = static_cast<float>(a), y = static_cast<float>(b);
        }
    return rows;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double d = 0, n = 0;
    for (size_t i = 0; i < a.size(); i++) d += std::pow(static_cast<double>(a[i] - b[i]), 2), n += std::pow(static_cast<double>(b[i]), 2);
    return std::sqrt(d / n);
}

} // namespace

// White noise after T weighs the same in every score direction as the definition asks: T Sk T^T and T^-T Sq T^-1 have the same spectrum,
// both being H L^1/2 H^T. Here: they are the same matrix, up to a factor.
TEST(Calibrate, KeysAndQueriesHaveTheSameCovarianceAfterTheTransform) {
    Random                   random(1);
    const std::vector<float> keys = correlated(random, kTokens, 1, 20, 3), queries = correlated(random, kTokens, 1, 5, 1);
    Calibration              c;
    c.add_rows(0, Operand::K, kDim, 1, keys);
    c.add_rows(0, Operand::V, kDim, 1, keys);
    c.add_queries(0, kDim, 1, 1, queries);
    const Profile   p = solved(c);
    const Transform t(kDim, p.layers[0].k[0].mean, p.layers[0].k[0].matrix, p.layers[0].k[0].inverse);
    Moments         k(kDim), q(kDim);
    for (size_t i = 0; i < kTokens; i++) {
        float x[kDim], y[kDim];
        std::copy_n(&keys[i * kDim], kDim, x), std::copy_n(&queries[i * kDim], kDim, y);
        t.forward(x), t.query(y);
        k.add(x, kDim, 1), q.add(y, kDim, 1);
    }
    double kk = 0, qq = 0, kq = 0;
    for (size_t i = 0; i < kDim; i++)
        for (size_t j = 0; j <= i; j++) {
            const double a = k.products[j * kDim + i], b = q.products[j * kDim + i]; // the lower triangle, column by column
            kk += a * a, qq += b * b, kq += a * b;
        }
    // Shrinkage by 0.02 is in the transform and not in these moments: the cosine is 1 up to its square.
    EXPECT_GT(kq / std::sqrt(kk * qq), 1 - 0.02);
}

// With independent coordinates of deviations a (keys) and b (queries) and a mean m, noise of a variance proportional to that of the
// transformed row leaves sum(a^2 + m^2) sum(b^2) after the Hadamard transform and sum(a b)^2 after T.
TEST(Calibrate, ScoresAreBetterThanAfterTheHadamardTransformByWhatTheTheorySays) {
    Random             random(2);
    double             a[kDim], b[kDim], mean[kDim], rows = 0, asked = 0, both = 0;
    std::vector<float> keys, queries;
    for (int i = 0; i < kDim; i++) {
        a[i] = std::pow(10, -i / 16.0), b[i] = std::pow(10, i % 4 / 2.0), mean[i] = a[i] * random.normal();
        rows += a[i] * a[i] + mean[i] * mean[i], asked += b[i] * b[i], both += a[i] * b[i];
    }
    for (size_t t = 0; t < kTokens; t++)
        for (int i = 0; i < kDim; i++) {
            keys.push_back(static_cast<float>(a[i] * random.normal() + mean[i]));
            queries.push_back(static_cast<float>(b[i] * random.normal()));
        }
    Calibration c;
    c.add_rows(0, Operand::K, kDim, 1, keys);
    c.add_rows(0, Operand::V, kDim, 1, keys);
    c.add_queries(0, kDim, 1, 1, queries);
    const Profile p       = solved(c);
    const auto    made    = p.transforms(p.layers[0], Operand::K, true);
    const double  before  = score_error(transform_for(kDim), keys, queries, FormatId::turbo3);
    const double  after   = score_error(*made[0], keys, queries, FormatId::turbo3);
    const double  promise = both * both / (rows * asked);
    // 256 queries, of which a quarter of the coordinates carries most: about 8 independent squares each, so 2 % of sampling error; the same
    // for keys; the shrinkage of 0.02 moves both. Together below 10 %.
    EXPECT_NEAR(after / before, promise, 0.1 * promise);
    EXPECT_LT(promise, 0.5);
}

TEST(Calibrate, MeanAndSecondMomentOverOffsetsAreThoseOfRotatedRows) {
    Random                   random(3);
    const std::vector<float> keys = correlated(random, 512, 1, 10, 2), queries = correlated(random, 512, 1, 10, 1);
    for (const bool halves : {false, true}) {
        Rope rope{{}, halves};
        for (int i = 0; i < kDim / 2 - 3; i++) rope.frequencies.push_back(std::pow(100.0, -i / 16.0)); // six coordinates are not rotated
        Calibration once, many;
        once.set_rope(5, rope);
        once.add_rows(5, Operand::K, kDim, 1, keys);
        once.add_rows(5, Operand::V, kDim, 1, keys);
        once.add_queries(5, kDim, 1, 1, queries);
        const int offsets = 40;
        for (int o = 0; o < offsets; o++) {
            many.add_rows(5, Operand::K, kDim, 1, rotated(keys, rope, o));
            many.add_queries(5, kDim, 1, 1, rotated(queries, rope, o));
            if (o == 0) continue; // as many rows in both: they decide how much is believed
            once.add_rows(5, Operand::K, kDim, 1, keys);
            once.add_queries(5, kDim, 1, 1, queries);
        }
        many.add_rows(5, Operand::V, kDim, 1, keys);
        const HeadProfile a = solved(once, offsets).layers[0].k[0], b = solved(many).layers[0].k[0];
        // Rotated rows were rounded to f32. The eigenvectors that make T amplify that by the ratio of an eigenvalue to its distance from
        // the next one, so compared is what T is for: T^T T, the metric of the noise.
        EXPECT_LT(difference(a.mean, b.mean), 1e-5);
        std::vector<float> metric_a, metric_b;
        for (const auto& [p, m] : {std::pair(&a, &metric_a), std::pair(&b, &metric_b)})
            for (size_t i = 0; i < kDim; i++)
                for (size_t j = 0; j < kDim; j++) {
                    double s = 0;
                    for (size_t r = 0; r < kDim; r++)
                        s += static_cast<double>(p->matrix[r * kDim + i]) * static_cast<double>(p->matrix[r * kDim + j]);
                    m->push_back(static_cast<float>(s));
                }
        EXPECT_LT(difference(metric_a, metric_b), 1e-4) << (halves ? "halves" : "neighbours");
    }
}

// A row of weight 2 says what it says twice.
TEST(Calibrate, WeightsAreRepetitions) {
    Random                   random(6);
    const std::vector<float> rows = correlated(random, 1024, 1, 10, 1);
    std::vector<float>       weights(512, 1.0f);
    weights.resize(1024, 2.0f);
    Moments weighed(kDim), repeated(kDim);
    weighed.add(rows.data(), kDim, 1024, weights.data());
    repeated.add(rows.data(), kDim, 1024), repeated.add(&rows[512 * kDim], kDim, 512);
    EXPECT_EQ(weighed.count, 1024);
    EXPECT_DOUBLE_EQ(weighed.weight, repeated.weight);
    EXPECT_DOUBLE_EQ(weighed.equal_rows(), 1536.0 * 1536.0 / (512 + 512 * 4));
    EXPECT_DOUBLE_EQ(repeated.equal_rows(), 1536);
    for (size_t i = 0; i < kDim; i++) {
        const double size = std::sqrt(repeated.products[i * kDim + i]);
        EXPECT_NEAR(weighed.sum[i], repeated.sum[i], 1e-12 * size * std::sqrt(1536));
        for (size_t j = 0; j <= i; j++)
            EXPECT_NEAR(weighed.products[j * kDim + i], repeated.products[j * kDim + i],
                        1e-12 * size * std::sqrt(repeated.products[j * kDim + j]));
    }
}

// Weights of a head are those of its rows: each head has a half of the text to itself.
TEST(Calibrate, EveryHeadHasItsWeights) {
    Random                   random(7);
    const std::vector<float> keys = correlated(random, 2048, 2, 10, 1), values = correlated(random, 2048, 2, 10, 1);
    const std::vector<float> queries = correlated(random, 2048, 4, 10, 1);
    std::vector<float>       of_queries;
    for (const float first : {1.0f, 1.0f, 0.0f, 0.0f}) {
        of_queries.insert(of_queries.end(), 1024, first);
        of_queries.insert(of_queries.end(), 1024, 1 - first);
    }
    const auto  of_rows = std::span<const float>(of_queries).subspan(2048, 4096);
    Calibration both;
    both.add_rows(0, Operand::K, kDim, 2, keys, of_rows);
    both.add_rows(0, Operand::V, kDim, 2, values, of_rows);
    both.add_queries(0, kDim, 4, 2, queries, of_queries);
    const LayerProfile weighed = solved(both).layers[0];
    for (const size_t h : {0, 1}) {
        const auto  half = [&](const std::vector<float>& x) { return std::span(x).subspan(h * x.size() / 2, x.size() / 2); };
        Calibration alone;
        alone.add_rows(0, Operand::K, kDim, 2, half(keys));
        alone.add_rows(0, Operand::V, kDim, 2, half(values));
        alone.add_queries(0, kDim, 4, 2, half(queries));
        const LayerProfile l = solved(alone).layers[0];
        EXPECT_LT(difference(weighed.k[h].mean, l.k[h].mean), 1e-6);
        EXPECT_LT(difference(weighed.v[h].mean, l.v[h].mean), 1e-6);
        EXPECT_LT(difference(weighed.v[h].matrix, l.v[h].matrix), 1e-5);
        EXPECT_LT(difference(weighed.k[h].matrix, l.k[h].matrix), 1e-5);
    }
}

TEST(Calibrate, HeadsOfAGroupArePooled) {
    Random                   random(4);
    const std::vector<float> keys = correlated(random, 1024, 2, 10, 1), queries = correlated(random, 1024, 4, 10, 1);
    Calibration              grouped, pooled;
    grouped.add_rows(1, Operand::K, kDim, 2, keys);
    grouped.add_rows(1, Operand::V, kDim, 2, keys);
    grouped.add_queries(1, kDim, 4, 2, queries);
    std::vector<float> second; // queries of heads 2 and 3 read KV head 1
    for (size_t t = 0; t < 1024; t++) second.insert(second.end(), &queries[(t * 4 + 2) * kDim], &queries[(t * 4 + 2) * kDim] + 2 * kDim);
    std::vector<float> head;
    for (size_t t = 0; t < 1024; t++) head.insert(head.end(), &keys[(t * 2 + 1) * kDim], &keys[(t * 2 + 1) * kDim] + kDim);
    pooled.add_rows(1, Operand::K, kDim, 1, head);
    pooled.add_rows(1, Operand::V, kDim, 1, head);
    pooled.add_queries(1, kDim, 1, 1, second);
    EXPECT_LT(difference(solved(grouped).layers[0].k[1].matrix, solved(pooled).layers[0].k[0].matrix), 1e-5);
}

TEST(Calibrate, RefusesWhatSaysNothing) {
    Random             random(5);
    std::vector<float> rows = correlated(random, 600, 1, 10, 1);
    Profile            p;
    p.architecture     = "untouched";
    const auto message = [&](const std::vector<float>& keys, const std::vector<float>& queries) {
        Calibration c;
        c.add_rows(0, Operand::K, kDim, 1, keys);
        c.add_rows(0, Operand::V, kDim, 1, keys);
        if (!queries.empty()) c.add_queries(0, kDim, 1, 1, queries);
        return c.solve(1, p).message();
    };
    EXPECT_EQ(Calibration().solve(1, p).message(), "calibration needs 512 tokens or more, there are 0");
    EXPECT_EQ(message({rows.begin(), rows.begin() + 100 * kDim}, rows), "calibration needs 512 tokens or more, there are 100");
    EXPECT_NE(message(rows, {}).find("do not match"), std::string::npos);
    std::vector<float> broken = rows;
    broken[77]                = std::nanf("");
    EXPECT_NE(message(broken, rows).find("not finite"), std::string::npos);
    EXPECT_NE(message(rows, broken).find("not finite"), std::string::npos);
    EXPECT_TRUE(p.layers.empty());
}

TEST(Calibrate, RowsThatNeverChangeAreNoObstacle) {
    const std::vector<float> constant(static_cast<size_t>(kDim) * 600, 1.5f), zero(constant.size(), 0.0f);
    for (const std::vector<float>& queries : {constant, zero}) {
        Calibration c;
        c.add_rows(0, Operand::K, kDim, 1, constant);
        c.add_rows(0, Operand::V, kDim, 1, zero);
        c.add_queries(0, kDim, 1, 1, queries);
        const Profile p = solved(c);
        Profile       q;
        EXPECT_TRUE(Profile::read(p.write(), q).ok()); // finite, and the inverse fits
    }
}
