// Rows whose codes repeat when the decoded row is encoded again: a range of |level(codes)|², by format and head_dim.
#pragma once
#include <cstdint>

namespace tightkv {

struct StableRange {
    int32_t least = 0, most = -1; // of Σ level²
};

// bits 2, 3 or 4; head_dim valid. Computed once; thread-safe.
const StableRange& stable_range(int bits, int head_dim);

} // namespace tightkv
