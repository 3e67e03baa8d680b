// The order in which tokens are fed, the same for every cache.
#pragma once
#include <cstddef>
#include <vector>

#include "engine_llama.h"

namespace tightkv::tool {

struct ScoredOutput {
    int    index; // in the step's tokens
    size_t chunk;
    Token  next;
};

struct Step {
    bool                      fresh = false; // the caches are emptied first
    std::vector<BatchToken>   tokens;
    std::vector<ScoredOutput> outputs;
};

using Chunks = std::vector<std::vector<Token>>;

int first_scored(int ctx); // of positions first_scored … ctx-2

std::vector<Step> batched_steps(const Chunks& chunks, int batch);
// `group` chunks at a time; positions before `from` go in as batches.
std::vector<Step> decode_steps(const Chunks& chunks, int group, int from, int batch);
// The beginning of `steps`, for the self-check: up to the first fresh step or `most` steps, with every position scored.
std::vector<Step> check_steps(const std::vector<Step>& steps, const Chunks& chunks, size_t most);

int decode_group(int chunks, int ctx); // how many chunks to decode together

} // namespace tightkv::tool
