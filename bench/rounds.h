// Figures of repeated rounds: the median, because one disturbed round must not count, and how far the rounds lie apart.
#pragma once
#include <algorithm>
#include <cmath>
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

// How a figure compares with another of the same rounds: the median of the rounds' ratios, in which a slow moment of the machine that lasts
// longer than a round is not seen, and the 95 % confidence interval of that median. The interval lies between two of the sorted ratios
// (order statistics: each ratio is above the true median with probability one half). That holds for any distribution, but for rounds that
// are independent of each other, and says nothing of what is the same in all of them, such as where memory lies. Fewer than six rounds
// have none so wide, and get the least and the largest.
struct PairedRatio {
    double median = 0, low = 0, high = 0;
};
inline PairedRatio paired_ratio(const std::vector<double>& x, const std::vector<double>& base) { // as long as each other, not empty
    std::vector<double> ratios(x.size());
    for (size_t i = 0; i < x.size(); i++) ratios[i] = x[i] / base[i];
    std::sort(ratios.begin(), ratios.end());
    // Dropping k at either end leaves 1 - 2 P(B <= k), B binomial of n and 1/2.
    const auto n           = static_cast<double>(ratios.size());
    const auto probability = [&](double i) { // P(B = i)
        return std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) - n * std::log(2.0));
    };
    size_t k     = 0;
    double below = probability(0) + probability(1);
    for (; 2 * below <= 0.05; below += probability(static_cast<double>(k) + 1)) k++;
    return {median(ratios), ratios[k], ratios[ratios.size() - 1 - k]};
}

} // namespace tightkv::bench
