// How positions turn keys and queries: rotary position embedding as frequencies.
#pragma once
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace tightkv {

struct Rope {
    std::vector<double> frequencies;    // radians per position, one per pair of coordinates; empty: not at all
    bool                halves = false; // pair i of n is (i, i + n), else (2i, 2i + 1)
};

// Coordinates x and y of a row turn together, by f radians per position: as a complex number x + iy is multiplied by exp(i f position).
struct RopePair {
    int64_t x, y;
    double  f; // 0: left alone
};
std::vector<RopePair> rope_pairs(const Rope& rope, int64_t head_dim);

// Mean of exp(i f o) over o = 0 … n-1.
std::complex<double> mean_turn(double f, int64_t n);

// The usual frequencies, as ggml computes them. factors: divide them one by one, or empty. ramp: the pairs between which YaRN goes from
// unscaled to scaled frequencies, of no account where ext_factor is 0; its mixture of two frequencies is a frequency.
std::vector<double> rope_frequencies(int n_dims, float base, float scale, float ext_factor, const float (&ramp)[2],
                                     std::span<const float> factors);

} // namespace tightkv
