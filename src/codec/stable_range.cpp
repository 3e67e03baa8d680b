// The range, from the cells of the codebook.
#include "codec/stable_range.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "codec/codebook_tables.h"
#include "codec/format.h"

namespace tightkv {

namespace {

// In steps of the fixed point: rounding of f16 moves a value by up to 2^-11 sqrt(d) deviations, the norm by 2^-11 of at most 4 deviations;
// rows at the lower limit of encode_levels() add two steps, the fixed point itself one, f32 one.
StableRange compute(const Codebook& book, int d) {
    const double margin   = kThresholdSteps / 2048.0 * (std::sqrt(d) + 4) + 4;
    double       smallest = 0, largest = 1e9;   // factor on the levels
    for (int c = book.n / 2; c < book.n; c++) { // the negative half mirrors it
        const double level = book.level[c] * static_cast<double>(book.unit) * kThresholdSteps;
        smallest           = std::max(smallest, (book.threshold[c - 1] + margin) / level);
        if (c + 1 < book.n) largest = std::min(largest, (book.threshold[c] - margin) / level);
    }
    if (!(smallest < largest)) return {};
    const auto norm2 = [&](double factor) { return d / (factor * factor * book.unit * book.unit); }; // factor = sqrt(d) / (unit |level|)
    return {static_cast<int32_t>(std::ceil(norm2(largest))), static_cast<int32_t>(std::floor(norm2(smallest)))};
}

} // namespace

const StableRange& stable_range(int bits, int head_dim) {
    using Ranges               = std::array<std::array<StableRange, kMaxHeadDim / 32 + 1>, 5>;
    static const Ranges ranges = [] {
        Ranges r{};
        for (int b = 2; b <= 4; b++)
            for (int k = 1; k <= kMaxHeadDim / 32; k++) r[static_cast<size_t>(b)][static_cast<size_t>(k)] = compute(codebook(b), 32 * k);
        return r;
    }();
    return ranges[static_cast<size_t>(bits)][static_cast<size_t>(head_dim) / 32];
}

} // namespace tightkv
