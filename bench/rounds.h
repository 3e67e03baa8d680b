// Figures of repeated rounds: the median, because one disturbed round must not count, and how far the rounds lie apart.
#pragma once
#include <algorithm>
#include <vector>

namespace tightkv::bench {

inline double median(std::vector<double> x) { // not empty
    std::sort(x.begin(), x.end());
    return x.size() % 2 ? x[x.size() / 2] : (x[x.size() / 2 - 1] + x[x.size() / 2]) / 2;
}

// (largest - smallest) / median
inline double spread(const std::vector<double>& x) {
    const auto [least, most] = std::minmax_element(x.begin(), x.end());
    return (*most - *least) / median(x);
}

} // namespace tightkv::bench
