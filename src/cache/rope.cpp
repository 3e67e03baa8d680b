// Frequencies of rotary position embedding.
#include "cache/rope.h"

#include <algorithm>
#include <cmath>

namespace tightkv {

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
