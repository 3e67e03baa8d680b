// How positions turn keys and queries: rotary position embedding as frequencies.
#pragma once
#include <vector>

namespace tightkv {

struct Rope {
    std::vector<double> frequencies;    // radians per position, one per pair of coordinates; empty: not at all
    bool                halves = false; // pair i of n is (i, i + n), else (2i, 2i + 1)
};

} // namespace tightkv
