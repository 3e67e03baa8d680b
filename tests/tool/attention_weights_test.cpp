// Weights against their definition: how far the output of attention moves when one score does, in double precision.
#include "attention_weights.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "base/half.h"

using namespace tightkv;
using namespace tightkv::tool;

namespace {

struct Case {
    std::string           name;
    int                   heads = 2, kv_heads = 1, d = 32, dv = 32, tokens = 24;
    float                 max_bias = 0, softcap = 0;
    bool                  sinks   = false;
    int                   sliding = 1 << 20; // tokens that a query sees, its own included
    bool                  mask    = true;
    std::vector<float>    q = {}, k = {}, v = {}, sink = {};
    std::vector<int64_t>  cells  = {};
    std::vector<uint16_t> bias   = {}; // [token][stride]
    size_t                stride = 0;
    float                 scale  = 0;

    void fill(unsigned seed) {
        std::mt19937                    random(seed);
        std::normal_distribution<float> normal;
        const auto                      draw = [&](std::vector<float>& x, int n) {
            x.resize(static_cast<size_t>(n));
            for (float& value : x) value = normal(random);
        };
        draw(q, tokens * heads * d), draw(k, tokens * kv_heads * d), draw(v, tokens * kv_heads * dv);
        if (sinks) draw(sink, heads);
        scale  = 1 / std::sqrt(static_cast<float>(d));
        stride = static_cast<size_t>(tokens) + 9; // more cells than tokens, and not in their order
        cells.resize(static_cast<size_t>(tokens));
        std::iota(cells.begin(), cells.end(), int64_t{9});
        std::shuffle(cells.begin(), cells.end(), random);
        bias.assign(stride * static_cast<size_t>(tokens), float_to_half(-INFINITY));
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < tokens; i++)
                if (i <= t && i > t - sliding)
                    bias[static_cast<size_t>(t) * stride + static_cast<size_t>(cells[static_cast<size_t>(i)])] =
                        max_bias > 0 ? float_to_half(static_cast<float>(i - t)) : uint16_t{0};
    }
    QueryRows rows() const {
        QueryRows r;
        r.head_dim = d, r.n_heads = heads, r.n_kv_heads = kv_heads, r.n_tokens = tokens;
        r.rows = q, r.scale = scale, r.max_bias = max_bias, r.softcap = softcap, r.sinks = sink;
        if (mask) r.mask = bias, r.mask_stride = stride;
        return r;
    }
};

// ALiBi: heads of a power of two have the slopes 2^-(max_bias / n), 2^-(2 max_bias / n), … (Press et al. 2022).
double slope(const Case& c, int head) {
    return c.max_bias > 0 ? std::pow(2.0, -static_cast<double>(c.max_bias) * (head + 1) / c.heads) : 1;
}

std::vector<double> scores(const Case& c, int head, int t, double& rounding) {
    std::vector<double> s;
    const int           kv = head / (c.heads / c.kv_heads);
    for (int i = 0; i < c.tokens; i++) {
        double x = 0, size = 0;
        for (int j = 0; j < c.d; j++) {
            const double term = static_cast<double>(c.q[static_cast<size_t>((t * c.heads + head) * c.d + j)]) *
                                static_cast<double>(c.k[static_cast<size_t>((i * c.kv_heads + kv) * c.d + j)]);
            x += term, size += std::abs(term);
        }
        x *= static_cast<double>(c.scale);
        rounding = std::max(rounding, size * static_cast<double>(c.scale) * c.d * 0x1p-24);
        if (c.softcap != 0) x = static_cast<double>(c.softcap) * std::tanh(x / static_cast<double>(c.softcap));
        if (c.mask)
            x += slope(c, head) * static_cast<double>(half_to_float(
                                      c.bias[static_cast<size_t>(t) * c.stride + static_cast<size_t>(c.cells[static_cast<size_t>(i)])]));
        s.push_back(x);
    }
    return s;
}
struct Attended {
    std::vector<double> p, o;
};
Attended attend(const Case& c, int head, const std::vector<double>& s) {
    const int kv  = head / (c.heads / c.kv_heads);
    double    sum = c.sinks ? std::exp(static_cast<double>(c.sink[static_cast<size_t>(head)])) : 0;
    Attended  a{{}, std::vector<double>(static_cast<size_t>(c.dv), 0.0)};
    for (const double x : s) a.p.push_back(std::exp(x)), sum += a.p.back();
    for (size_t i = 0; i < s.size(); i++) {
        a.p[i] /= sum;
        for (size_t j = 0; j < a.o.size(); j++)
            a.o[j] += a.p[i] * static_cast<double>(c.v[(i * static_cast<size_t>(c.kv_heads) + static_cast<size_t>(kv)) * a.o.size() + j]);
    }
    return a;
}

void expect_the_definition(const Case& c, int exact) {
    constexpr double    kStep = 1e-4; // of a score; central differences: an error of the square of it
    AttentionWeigher    weigher(2);
    const auto          w = weigher.weigh(c.rows(), c.k, c.v, c.cells, exact);
    const auto          n = static_cast<size_t>(c.tokens);
    std::vector<double> keys(w.keys.size()), values(keys), key_error(keys), value_error(keys);
    ASSERT_EQ(keys.size(), n * static_cast<size_t>(c.kv_heads));
    ASSERT_EQ(w.queries.size(), n * static_cast<size_t>(c.heads));
    for (int h = 0; h < c.heads; h++)
        for (int t = 0; t < c.tokens; t++) {
            double all = 0, all_error = 0;
            for (int i = exact; t >= exact && i < c.tokens; i++) {
                double         rounding = 0;
                auto           s        = scores(c, h, t, rounding);
                const Attended a        = attend(c, h, s);
                const auto     at       = static_cast<size_t>(i);
                double         moved = 0, size = 0;
                if (std::isfinite(s[at])) {
                    s[at] += kStep;
                    const Attended more = attend(c, h, s);
                    s[at] -= 2 * kStep;
                    const Attended less = attend(c, h, s);
                    for (size_t j = 0; j < a.o.size(); j++) {
                        const double by = (more.o[j] - less.o[j]) / (2 * kStep);
                        moved += by * by;
                    }
                }
                // |v - o|^2 is made of squares that cancel: what they lose is relative to all of |v|, |o| (at most the largest |v|).
                for (const float x : c.v) size = std::max(size, static_cast<double>(x) * static_cast<double>(x));
                size *= 4 * c.dv;
                const double p        = a.p[at];
                const double relative = 4 * rounding + (c.tokens + 8) * 0x1p-23; // of p^2: twice that of exp of two sums
                const double error    = moved * (relative + 10 * kStep * kStep) + p * p * size * (c.dv + c.tokens) * 0x1p-23;
                const size_t kv       = static_cast<size_t>(h / (c.heads / c.kv_heads)) * n + at;
                keys[kv] += moved, values[kv] += p, all += moved;
                key_error[kv] += error, value_error[kv] += p * relative, all_error += error;
            }
            EXPECT_NEAR(static_cast<double>(w.queries[static_cast<size_t>(h) * n + static_cast<size_t>(t)]), all, all_error)
                << c.name << ": head " << h << " query " << t;
        }
    for (size_t i = 0; i < keys.size(); i++) {
        EXPECT_NEAR(static_cast<double>(w.keys[i]), keys[i], key_error[i]) << c.name << ": key " << i;
        EXPECT_NEAR(static_cast<double>(w.values[i]), values[i], value_error[i]) << c.name << ": value " << i;
    }
}

} // namespace

TEST(AttentionWeights, AreTheSquaredMovementOfTheOutput) {
    std::vector<Case> cases = {{.name = "one head", .heads = 1},
                               {.name = "groups", .heads = 6, .kv_heads = 2},
                               {.name = "wide values", .heads = 2, .kv_heads = 2, .d = 64, .dv = 96},
                               {.name = "sliding window", .heads = 2, .sliding = 7},
                               {.name = "ALiBi", .heads = 4, .max_bias = 8},
                               {.name = "soft cap", .heads = 2, .softcap = 2},
                               {.name = "sinks", .heads = 4, .kv_heads = 2, .sinks = true},
                               {.name = "no mask", .heads = 2, .mask = false},
                               {.name = "one token", .heads = 2, .tokens = 1}};
    unsigned          seed  = 1;
    for (Case& c : cases) {
        c.fill(seed++);
        for (const int exact : {0, 4}) expect_the_definition(c, std::min(exact, c.tokens));
    }
}

// What nobody reads costs nothing, and what everybody reads costs most.
TEST(AttentionWeights, FollowTheAttention) {
    Case c{.name = "read", .heads = 1};
    c.fill(20);
    for (int j = 0; j < c.d; j++)
        for (int t = 0; t < c.tokens; t++) {
            const auto at = static_cast<size_t>(t * c.d + j);
            c.q[at]       = 1;
            c.k[at]       = t == 5 ? 1.0f : t == 6 ? -20.0f : 0.0f;
        }
    AttentionWeigher weigher(1);
    const auto       w = weigher.weigh(c.rows(), c.k, c.v, c.cells, 4);
    for (size_t i = 7; i < 24; i++) {
        EXPECT_GT(w.keys[5], 10 * w.keys[i]);
        EXPECT_GT(w.values[5], 10 * w.values[i]);
        EXPECT_LT(w.keys[6], 1e-6f * w.keys[i]);
        EXPECT_LT(w.values[6], 1e-6f * w.values[i]);
    }
    for (size_t i = 0; i < 4; i++) {
        EXPECT_EQ(w.keys[i], 0);
        EXPECT_EQ(w.queries[i], 0);
    }
}
