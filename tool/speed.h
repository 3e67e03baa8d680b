// Decode speed at depth, caches alternating in one process.
//
// Filling a cache of 8K tokens costs more than measuring on it. So one block of 512 tokens is computed once per cache, saved, and restored
// as further sequences of the same (unified) cache until the depth is reached; then one sequence owns all of these cells and decodes on top
// of them. It attends to exactly `depth` cells of real keys and values; only their positions repeat.
#pragma once
#include <string>
#include <vector>

#include "cache_choice.h"
#include "engine_llama.h"
#include "progress.h"

namespace tightkv::tool {

inline constexpr int kDepthBlock = 512;

struct SpeedPlan {
    std::vector<CacheChoice> caches;
    std::vector<int>         depths; // ascending multiples of kDepthBlock
    std::vector<Token>       tokens; // at least kDepthBlock + tokens_per_round
    int                      threads = 1, rounds = 3, tokens_per_round = 16;
};

struct SpeedRow {
    std::string         cache;
    std::vector<double> tokens_per_second; // by depth: median of the rounds; missing ones were interrupted
    int64_t             cache_bytes = 0;   // of `cells` tokens
    int                 cells       = 0;
};

double                speed_units(const SpeedPlan& plan);
std::vector<SpeedRow> measure_speed(const Model& model, const SpeedPlan& plan, Progress& progress, double scale);

} // namespace tightkv::tool
