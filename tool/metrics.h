// From logits to quality figures: KL divergence, perplexity and agreement of a candidate against a reference.
//
// Logits are f32 of one position, [n_vocab]. Exponentials are f32 (relative error below 2e-7), sums are double. Conventions are those of
// llama-perplexity: KLD = sum p_ref (log p_ref - log p), percentiles interpolate linearly between order statistics.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tightkv::tool {

// What is needed of the reference at one position, computed once for all candidates.
struct ReferencePosition {
    double             log_sum = 0; // log of the sum of exp(logit)
    double             nll     = 0; // of the token that follows
    int                best    = 0; // index of the largest logit, the first of equals
    std::vector<float> p;           // [n_vocab]
};

struct PositionScore {
    double nll  = 0; // nats
    double kld  = 0; // nats; exactly 0 for identical logits
    bool   top1 = false;
};

void          set_reference(ReferencePosition& r, std::span<const float> logits, int next_token);
PositionScore score(const ReferencePosition& r, std::span<const float> reference, std::span<const float> logits, int next_token);
bool          finite(const PositionScore& s);

// fraction in [0, 1]; `sorted` ascending and not empty.
double percentile(std::span<const double> sorted, double fraction);

struct MeanError {
    double mean = 0;
    double se   = 0; // standard error: over chunk means where there are two or more chunks, else over tokens
};

struct Summary {
    double  ppl = 0, ppl_se = 0;
    double  kld = 0, kld_se = 0, kld_median = 0, kld_p99 = 0, kld_p999 = 0;
    double  top1     = 0; // share in [0, 1]
    int64_t n_tokens = 0;
};

// Scores of one candidate, grouped by chunk; chunks may be filled in any order.
class Scores {
public:
    explicit Scores(size_t chunks) : chunks_(chunks) {}
    void    add(size_t chunk, const PositionScore& s) { chunks_[chunk].push_back(s); }
    bool    empty() const;
    Summary summary() const;

private:
    friend MeanError kld_difference(const Scores& a, const Scores& b);

    std::vector<std::vector<PositionScore>> chunks_;
};

// Of a - b, position by position. Two caches find the same tokens hard, so their difference is known far better than either figure:
// the standard error is that of the differences. Both have scored the same positions, in the same order.
MeanError kld_difference(const Scores& a, const Scores& b);

// groups[c] = values of chunk c; empty chunks do not count.
MeanError mean_over_chunks(const std::vector<std::vector<double>>& groups);

} // namespace tightkv::tool
