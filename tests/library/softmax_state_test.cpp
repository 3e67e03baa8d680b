// Laws of the running softmax state: merging is neutral on empty states, commutative and associative up to rounding, and equals
// the softmax of the union.
#include "base/softmax_state.h"

#include <gtest/gtest.h>

#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

constexpr size_t kDim = 8;

struct State { // owns its output
    float              m = kNegInf, l = 0;
    std::vector<float> o = std::vector<float>(kDim, 0.0f);
};

State merged(State a, State b) {
    SoftmaxState s{a.m, a.l, a.o.data()};
    s.merge({b.m, b.l, b.o.data()}, kDim);
    return {s.m, s.l, a.o};
}

State key(float score, const std::vector<float>& value) { return {score, 1.0f, value}; }

void expect_near(const State& a, const State& b) {
    ASSERT_EQ(a.m, b.m);
    ASSERT_NEAR(a.l, b.l, 1e-5f * (1 + std::fabs(a.l)));
    for (size_t i = 0; i < kDim; i++) ASSERT_NEAR(a.o[i], b.o[i], 1e-5f * (1 + a.l * 4));
}

State random_state(Random& random) {
    State s;
    for (int n = random.below(5); n > 0; n--) s = merged(s, key(static_cast<float>(10 * random.normal()), gaussian(random, kDim)));
    return s;
}

} // namespace

TEST(SoftmaxState, EmptyIsNeutral) {
    Random random(61);
    for (int i = 0; i < 100; i++) {
        const State s = random_state(random);
        for (const State& t : {merged(s, {}), merged({}, s)}) {
            EXPECT_EQ(t.m, s.m);
            EXPECT_EQ(t.l, s.l);
            EXPECT_EQ(t.o, s.o);
        }
    }
}

TEST(SoftmaxState, CommutativeAndAssociative) {
    Random random(62);
    for (int i = 0; i < 2000; i++) {
        const State a = random_state(random), b = random_state(random), c = random_state(random);
        expect_near(merged(a, b), merged(b, a));
        expect_near(merged(merged(a, b), c), merged(a, merged(b, c)));
    }
}

TEST(SoftmaxState, EqualsSoftmaxOfTheUnion) {
    Random random(63);
    for (int round = 0; round < 200; round++) {
        const int                       n = 1 + random.below(40), split = random.below(n + 1);
        State                           left, right;
        std::vector<double>             want(kDim, 0.0), score(static_cast<size_t>(n));
        double                          sum = 0, top = -INFINITY;
        std::vector<std::vector<float>> value;
        for (int j = 0; j < n; j++) {
            const float s = static_cast<float>(20 * random.normal());
            value.push_back(gaussian(random, kDim));
            State& side = j < split ? left : right;
            side        = merged(side, key(s, value.back()));
            score[j] = s, top = std::max(top, score[j]);
        }
        const bool  sink  = random.below(2);
        const float logit = static_cast<float>(20 * random.normal());
        if (sink) top = std::max<double>(top, logit);
        for (int j = 0; j < n; j++) {
            const double p = std::exp(score[j] - top);
            sum += p;
            for (size_t x = 0; x < kDim; x++) want[x] += p * value[j][x];
        }
        if (sink) sum += std::exp(logit - top);
        State        all = merged(left, right);
        SoftmaxState s{all.m, all.l, all.o.data()};
        if (sink) s.add_sink(logit, kDim);
        s.normalize(kDim);
        for (size_t x = 0; x < kDim; x++) ASSERT_NEAR(all.o[x], want[x] / sum, 2e-5) << "sink " << sink;
    }
}

TEST(SoftmaxState, NothingVisibleGivesZeros) {
    State        s;
    SoftmaxState t{s.m, s.l, s.o.data()};
    t.normalize(kDim);
    EXPECT_EQ(s.o, std::vector<float>(kDim, 0.0f));
    t.add_sink(3.0f, kDim); // a sink alone: all weight on no value
    t.normalize(kDim);
    EXPECT_EQ(s.o, std::vector<float>(kDim, 0.0f));
}

TEST(SoftmaxState, SinkTakesItsShare) { // equal logits: half each
    State        s = key(2.0f, std::vector<float>(kDim, 1.0f));
    SoftmaxState t{s.m, s.l, s.o.data()};
    t.add_sink(2.0f, kDim);
    t.normalize(kDim);
    for (const float v : s.o) EXPECT_FLOAT_EQ(v, 0.5f);
}

TEST(SoftmaxState, NanIsNotLostInAMerge) { // all scores NaN: m never rose above -inf, l and o hold the NaN
    State       nan{kNegInf, NAN, std::vector<float>(kDim, NAN)};
    Random      random(64);
    const State real = key(1.0f, gaussian(random, kDim));
    for (State s : {merged(nan, nan), merged({}, nan), merged(nan, real), merged(real, nan)}) {
        SoftmaxState t{s.m, s.l, s.o.data()};
        t.normalize(kDim);
        for (const float v : s.o) EXPECT_TRUE(std::isnan(v)) << v;
    }
}
