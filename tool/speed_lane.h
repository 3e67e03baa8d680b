// One cache in a measurement of speed: filled to a depth, then tokens per second on top of it. The context that computes is this process's
// or, in a process of its own, one of a fork's library: both fill and count alike.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "engine_llama.h"
#include "errors.h"

namespace tightkv::tool {

inline constexpr int kDepthBlock  = 512;
inline constexpr int kProbeTokens = 64;

class SpeedLane {
public:
    virtual ~SpeedLane() = default;

    // The depth grows to so many blocks. False: interrupted.
    virtual bool fill(int blocks) = 0;
    // Computes n tokens, at most `batch` at once, and forgets them. Tokens per second; negative: interrupted.
    virtual double rate(int n, int batch) = 0;
    // Logits after the first kProbeTokens tokens, before anything is filled. Empty: interrupted.
    virtual std::vector<float> probe() = 0;

    std::string name; // of the cache
};

// C has the functions of Context that are used here.
template <class C> class ContextLane : public SpeedLane {
public:
    // tokens: at least kDepthBlock, repeated where more are needed.
    ContextLane(std::string name_, std::unique_ptr<C> context, std::vector<Token> tokens)
        : context_(std::move(context)), tokens_(std::move(tokens)) {
        name = std::move(name_);
    }

    bool fill(int blocks) override {
        for (; filled_ < blocks; filled_++) {
            const int sequence = filled_ + 1;
            if (filled_ == 0) {
                std::vector<BatchToken> batch;
                for (int i = 0; i < kDepthBlock; i++) batch.push_back({token(i), i, sequence, false});
                if (!context_->decode(batch)) return false;
                block_ = context_->save(sequence);
            } else {
                context_->restore(sequence, block_);
            }
        }
        // Shared after all are there: a saved block must belong to one sequence.
        for (int s = 1; s <= blocks; s++) context_->share(s, kSequence);
        if (blocks > 0 && context_->next_position(kSequence) != kDepthBlock)
            throw failure(fmt::format("cache '{}' could not be filled for the speed measurement", name));
        return true;
    }

    double rate(int n, int batch) override {
        const int    start  = context_->next_position(kSequence);
        const double before = context_->seconds();
        for (int i = 0; i < n; i += batch) {
            std::vector<BatchToken> step;
            for (int k = i; k < std::min(n, i + batch); k++)
                step.push_back({token(kDepthBlock + k), start + k, kSequence, k + 1 == std::min(n, i + batch)});
            if (!context_->decode(step)) return -1;
        }
        const double seconds = context_->seconds() - before;
        context_->remove(kSequence, start);
        return n / seconds;
    }

    std::vector<float> probe() override {
        std::vector<BatchToken> batch;
        for (int i = 0; i < kProbeTokens; i++) batch.push_back({token(i), i, kSequence, i + 1 == kProbeTokens});
        if (!context_->decode(batch)) return {};
        const auto         logits = context_->logits(kProbeTokens - 1);
        std::vector<float> copy(logits.begin(), logits.end());
        context_->remove(kSequence, 0);
        return copy;
    }

    C&       context() { return *context_; }
    const C& context() const { return *context_; }

private:
    static constexpr int kSequence = 0; // the one that decodes; blocks are sequences 1, 2, …

    Token token(int i) const { return tokens_[static_cast<size_t>(i) % tokens_.size()]; }

    std::unique_ptr<C>   context_;
    std::vector<Token>   tokens_;
    std::vector<uint8_t> block_; // the saved sequence
    int                  filled_ = 0;
};

} // namespace tightkv::tool
