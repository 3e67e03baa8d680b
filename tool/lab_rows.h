// Candidates of the lab (lab:NAME): an f16 cache of the host in which every row is replaced, right after it was written, by what the method
// makes of it. So all methods meet the same attention, on both paths; what they would store is counted, not stored.
//
// Methods that are fitted see the project's own text (data/calibration.txt), never the text that is measured.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cache_choice.h"
#include "engine_llama.h"
#include "engine_llama_rows.h"
#include "lab/methods/method.h"

namespace tightkv::tool {

inline constexpr int kLabTokens = 2048; // of the calibration text, at least

// Throws Failure where the model's head_dim is none that the method serves.
void require_lab_head_dim(const Model& model, const CacheChoice& cache);

// The methods of one run, fitted to one model. Contexts that use its observers must not outlive it.
class LabFits {
public:
    // Reads `text` where a method of `caches` must be fitted, in chunks of `ctx` tokens, the positions that will be used. Throws Failure;
    // in particular where `text` is `measured_text`, too.
    LabFits(const Model& model, const std::vector<CacheChoice>& caches, const std::string& text, const std::string& measured_text, int ctx,
            int threads);
    ~LabFits();

    bool                         fitted_on_text() const { return !layers_.empty(); }
    std::unique_ptr<RowObserver> observer(const CacheChoice& cache);             // for ContextOptions, of an f16 cache
    double                       bits_per_value(const CacheChoice& cache) const; // keys and values of sequences of ctx tokens

    // For the observers: the method fitted to every head of a layer.
    using Heads = std::vector<std::unique_ptr<lab::HeadMethod>>;
    const Heads& heads(const std::string& method, int layer, lab::Operand operand, int head_dim, int n_kv_heads);

private:
    struct Layer; // rows of the calibration text
    class Capture;

    const Model&                                                   model_;
    int                                                            ctx_;
    std::map<std::string, std::unique_ptr<lab::Method>>            methods_;
    std::map<std::pair<int, lab::Operand>, std::unique_ptr<Layer>> layers_;
    std::map<std::tuple<std::string, int, lab::Operand>, Heads>    heads_;
};

} // namespace tightkv::tool
