#include "metrics.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace tightkv::tool {

namespace {

constexpr size_t kLanes = 8; // independent sums, so that the compiler may use vectors without reordering anything

// exp(x) for x <= 0, branch-free so that loops over it become vector code. Cephes' expf (S. Moshier): x = n ln2 + r, a polynomial of
// degree 7 in r, times 2^n. Below -87 (where 2^n would leave the normal range) the value is that of -87: 1.6e-38.
inline float exp_negative(float x) {
    x              = std::max(x, -87.0f);
    const float t  = x * 1.44269504088896341f + 12582912.0f; // 1.5 * 2^23: the addition rounds to an integer
    const float n  = t - 12582912.0f;
    const float r  = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float       p  = 1.9875691500e-4f;
    p              = p * r + 1.3981999507e-3f;
    p              = p * r + 8.3334519073e-3f;
    p              = p * r + 4.1665795894e-2f;
    p              = p * r + 1.6666665459e-1f;
    p              = p * r + 5.0000001201e-1f;
    p              = p * r * r + r + 1.0f;
    const auto two = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
    return p * two;
}

int arg_max(std::span<const float> x) { return static_cast<int>(std::max_element(x.begin(), x.end()) - x.begin()); }

// log(sum(exp(x))) with maximum m; where `out` is given, out[i] = exp(x[i] - m).
double log_sum_exp(std::span<const float> x, float m, float* out) {
    double sum[kLanes] = {};
    size_t i           = 0;
    for (; i + kLanes <= x.size(); i += kLanes) {
        float e[kLanes];
        for (size_t j = 0; j < kLanes; j++) e[j] = exp_negative(x[i + j] - m);
        for (size_t j = 0; j < kLanes; j++) sum[j] += static_cast<double>(e[j]);
        if (out)
            for (size_t j = 0; j < kLanes; j++) out[i + j] = e[j];
    }
    double total = 0;
    for (; i < x.size(); i++) {
        const float e = exp_negative(x[i] - m);
        if (out) out[i] = e;
        total += static_cast<double>(e);
    }
    for (const double s : sum) total += s;
    return static_cast<double>(m) + std::log(total);
}

// sum p[i] * (a[i] - b[i])
double weighted_difference(const float* p, const float* a, const float* b, size_t n) {
    double sum[kLanes] = {};
    size_t i           = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (size_t j = 0; j < kLanes; j++)
            sum[j] += static_cast<double>(p[i + j]) * (static_cast<double>(a[i + j]) - static_cast<double>(b[i + j]));
    double total = 0;
    for (; i < n; i++) total += static_cast<double>(p[i]) * (static_cast<double>(a[i]) - static_cast<double>(b[i]));
    for (const double s : sum) total += s;
    return total;
}

double mean(std::span<const double> x) {
    double s = 0;
    for (const double v : x) s += v;
    return x.empty() ? 0.0 : s / static_cast<double>(x.size());
}

double standard_error(std::span<const double> x) {
    if (x.size() < 2) return 0.0;
    const double m = mean(x);
    double       s = 0;
    for (const double v : x) s += (v - m) * (v - m);
    const auto n = static_cast<double>(x.size());
    return std::sqrt(s / (n - 1) / n);
}

} // namespace

void set_reference(ReferencePosition& r, std::span<const float> logits, int next_token) {
    r.best = arg_max(logits);
    r.p.resize(logits.size());
    const float m = logits[static_cast<size_t>(r.best)];
    r.log_sum     = log_sum_exp(logits, m, r.p.data());
    // p from exp(logit - m): divide by the sum, which is exp(log_sum - m).
    const auto norm = static_cast<float>(std::exp(static_cast<double>(m) - r.log_sum));
    for (float& p : r.p) p *= norm;
    r.nll = r.log_sum - static_cast<double>(logits[static_cast<size_t>(next_token)]);
}

PositionScore score(const ReferencePosition& r, std::span<const float> reference, std::span<const float> logits, int next_token) {
    const int    best    = arg_max(logits);
    const double log_sum = log_sum_exp(logits, logits[static_cast<size_t>(best)], nullptr);
    // log p_ref - log p = (a - log_sum_a) - (b - log_sum_b); the p sum to 1.
    const double kld = weighted_difference(r.p.data(), reference.data(), logits.data(), logits.size()) + (log_sum - r.log_sum);
    return {.nll = log_sum - static_cast<double>(logits[static_cast<size_t>(next_token)]), .kld = kld, .top1 = best == r.best};
}

bool finite(const PositionScore& s) { return std::isfinite(s.nll) && std::isfinite(s.kld); }

double percentile(std::span<const double> sorted, double fraction) {
    const double at = fraction * static_cast<double>(sorted.size() - 1);
    const auto   i  = static_cast<size_t>(at);
    const double f  = at - static_cast<double>(i);
    return (1 - f) * sorted[i] + f * sorted[std::min(i + 1, sorted.size() - 1)];
}

MeanError mean_over_chunks(const std::vector<std::vector<double>>& groups) {
    std::vector<double> all, means;
    for (const auto& g : groups) {
        if (g.empty()) continue;
        all.insert(all.end(), g.begin(), g.end());
        means.push_back(mean(g));
    }
    return {.mean = mean(all), .se = standard_error(means.size() >= 2 ? means : all)};
}

bool Scores::empty() const {
    return std::all_of(chunks_.begin(), chunks_.end(), [](const auto& c) { return c.empty(); });
}

MeanError kld_difference(const Scores& a, const Scores& b) {
    std::vector<std::vector<double>> differences(a.chunks_.size());
    for (size_t c = 0; c < a.chunks_.size(); c++)
        for (size_t i = 0; i < a.chunks_[c].size(); i++) differences[c].push_back(a.chunks_[c][i].kld - b.chunks_.at(c).at(i).kld);
    return mean_over_chunks(differences);
}

Summary Scores::summary() const {
    std::vector<std::vector<double>> nll(chunks_.size()), kld(chunks_.size());
    std::vector<double>              sorted;
    int64_t                          agree = 0;
    for (size_t c = 0; c < chunks_.size(); c++)
        for (const PositionScore& s : chunks_[c]) {
            nll[c].push_back(s.nll);
            kld[c].push_back(s.kld);
            sorted.push_back(s.kld);
            agree += s.top1;
        }
    if (sorted.empty()) return {};
    std::sort(sorted.begin(), sorted.end());
    const MeanError n = mean_over_chunks(nll), k = mean_over_chunks(kld);
    Summary         s;
    s.n_tokens   = static_cast<int64_t>(sorted.size());
    s.ppl        = std::exp(n.mean);
    s.ppl_se     = s.ppl * n.se; // d exp(x) = exp(x) dx
    s.kld        = k.mean;
    s.kld_se     = k.se;
    s.kld_median = percentile(sorted, 0.5);
    s.kld_p99    = percentile(sorted, 0.99);
    s.kld_p999   = percentile(sorted, 0.999);
    s.top1       = static_cast<double>(agree) / static_cast<double>(sorted.size());
    return s;
}

} // namespace tightkv::tool
