// A whole model on the libraries of ik_llama.cpp, as one more cache of `bench model`: a process of its own that fills and counts when it is
// told to.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine_llama.h"
#include "rival_process.h"
#include "speed_lane.h"

namespace tightkv::tool {

struct RivalCache {
    RivalLibrary library;
    std::string  type; // of K and V
    std::string  name() const { return library.name + ":" + type; }
};

struct RivalLane {
    std::unique_ptr<SpeedLane> lane;
    double                     cache_bytes = 0;
};

// Returns when the model is loaded; throws Failure. model: GGUF file; tokens: as for ContextLane.
RivalLane start_rival_model(const RivalCache& cache, const std::string& model, const ContextOptions& options,
                            const std::vector<Token>& tokens);

} // namespace tightkv::tool
