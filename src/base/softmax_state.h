// The running softmax of one query row over part of the keys: maximum m, sum l = Σ exp(s - m), output o = Σ exp(s - m) v.
// Two states of disjoint key sets merge into the state of their union; the operation is associative
// (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax").
#pragma once
#include <cmath>
#include <cstddef>
#include <limits>

namespace tightkv {

inline constexpr float kNegInf = -std::numeric_limits<float>::infinity();

struct SoftmaxState {
    float  m = kNegInf;
    float  l = 0.0f;
    float* o = nullptr; // [d]

    // Takes in a state over other keys. An empty state is neutral; one that holds NaN passes it on.
    void merge(const SoftmaxState& other, size_t d) {
        if (other.m == kNegInf && other.l == 0.0f) return;
        const float top  = m > other.m ? m : other.m;
        const float mine = m == kNegInf ? 0.0f : std::exp(m - top), theirs = std::exp(other.m - top);
        l = l * mine + other.l * theirs;
        for (size_t i = 0; i < d; i++) o[i] = o[i] * mine + other.o[i] * theirs;
        m = top;
    }
    // An attention sink is one more key with the given logit and no value: it only enlarges the denominator.
    void add_sink(float logit, size_t d) {
        const float top  = m > logit ? m : logit;
        const float mine = m == kNegInf ? 0.0f : std::exp(m - top);
        l                = l * mine + std::exp(logit - top);
        for (size_t i = 0; i < d; i++) o[i] *= mine;
        m = top;
    }
    // o / l; zeros where every key was masked, NaN where a score was.
    void normalize(size_t d) {
        const float inv = l == 0.0f ? 0.0f : 1.0f / l;
        for (size_t i = 0; i < d; i++) o[i] *= inv;
    }
};

} // namespace tightkv
