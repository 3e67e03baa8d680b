// Decode and prefill speed at depth, caches alternating in one process.
//
// Filling a cache of 8K tokens costs more than measuring on it. So one block of 512 tokens is computed once per cache, saved, and restored
// as further sequences of the same (unified) cache until the depth is reached; then one sequence owns all of these cells and computes on
// top of them. It attends to exactly `depth` cells of real keys and values; only their positions repeat.
#pragma once
#include <string>
#include <vector>

#include "bench/rounds.h"
#include "cache_choice.h"
#include "engine_llama.h"
#include "progress.h"
#include "rival_model.h"
#include "speed_lane.h"

namespace tightkv::tool {

inline constexpr int kMostDepth = 127 * kDepthBlock; // a block is a sequence, and llama.cpp has at most 256 (older ones 128)

struct SpeedPlan {
    std::vector<CacheChoice> caches;      // at least one
    std::vector<RivalCache>  rivals = {}; // measured after these in every round
    std::vector<int>         depths;      // ascending multiples of kDepthBlock, up to kMostDepth
    std::vector<Token>       tokens;      // at least kDepthBlock; repeated where more are needed
    int                      threads = 1, rounds = 3;
    int                      decode_tokens  = 16; // of a round, one at a time
    int                      prefill_tokens = 0;  // of a round, in batches of at most kDepthBlock; 0: not measured
};

struct Rate { // tokens per second, of the rounds
    double             median = 0, spread = 0;
    bench::PairedRatio to_first; // to those of the first cache of `caches`
};

struct SpeedRow {
    std::string       cache;
    std::vector<Rate> decode, prefill; // by depth; missing ones were interrupted
    double            bits_per_value = 0;
    int64_t           cache_bytes    = 0; // of `cells` tokens
    int               cells          = 0;
};

double speed_units(const SpeedPlan& plan);
// Those of the caches, then those of the rivals, whose logits are compared with those of the first cache before anything is measured.
std::vector<SpeedRow> measure_speed(const Model& model, const SpeedPlan& plan, Progress& progress, double scale);

} // namespace tightkv::tool
