// Frequencies of rotary position embedding.
#include "cache/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tightkv {

std::vector<RopePair> rope_pairs(const Rope& rope, int64_t head_dim) {
    std::vector<RopePair> pairs;
    const auto            turning = static_cast<int64_t>(rope.frequencies.size());
    for (int64_t i = 0; i < turning; i++) {
        const double f = rope.frequencies[static_cast<size_t>(i)];
        if (rope.halves) pairs.push_back({i, i + turning, f});
        else pairs.push_back({2 * i, 2 * i + 1, f});
    }
    for (int64_t i = 2 * turning; i + 1 < head_dim; i += 2) pairs.push_back({i, i + 1, 0.0});
    return pairs;
}

std::complex<double> mean_turn(double f, int64_t n) {
    const double half = std::remainder(f, 2 * std::numbers::pi) / 2, count = static_cast<double>(n);
    if (std::fabs(half) < 1e-12) return 1.0; // n half is nothing, too, for any n there is
    const double length = std::sin(count * half) / (count * std::sin(half)), angle = half * (count - 1);
    return {length * std::cos(angle), length * std::sin(angle)}; // std::polar takes no negative length
}

std::vector<double> rope_frequencies(int n_dims, float base, float scale, float ext_factor, const float (&ramp)[2],
                                     std::span<const float> factors) {
    std::vector<double> f;
    const double        first = static_cast<double>(ramp[0]), span = std::max(0.001, static_cast<double>(ramp[1] - ramp[0]));
    for (size_t i = 0; i < static_cast<size_t>(n_dims / 2); i++) {
        const double factor = factors.empty() ? 1.0 : static_cast<double>(factors[i]);
        const double plain  = std::pow(static_cast<double>(base), -2.0 * static_cast<double>(i) / n_dims) / factor;
        const double mix    = static_cast<double>(ext_factor) * (1 - std::clamp((static_cast<double>(i) - first) / span, 0.0, 1.0));
        f.push_back(plain * (mix + static_cast<double>(scale) * (1 - mix)));
    }
    return f;
}

} // namespace tightkv
