// Operators of another ggml library (a fork of llama.cpp, say) in a process of their own: two libraries with the same names do not share
// one well. The child is this program again, `tightkv bench attention-rival`; it checks its results, then answers every "time" with
// seconds.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bench/contender.h"
#include "commands.h"

namespace tightkv::tool {

struct RivalLibrary {
    std::string name, folder; // of --rival NAME=FOLDER
};
// file: must lie in the folder. Throws Failure (usage).
std::vector<RivalLibrary> parse_rival_libraries(const std::vector<std::string>& options, const std::string& file);

// Returns when the child has filled its cache and checked its results; throws Failure with what went wrong.
std::unique_ptr<bench::Contender> start_rival_process(const RivalLibrary& library, const std::string& type,
                                                      const bench::AttentionData& data, double total_bytes, int threads);

} // namespace tightkv::tool
