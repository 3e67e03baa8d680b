// Making a profile: a text is run through the model, and what is written into its cache and asked of it becomes statistics.
#pragma once
#include <string>
#include <vector>

#include "cache/profile.h"
#include "engine_llama.h"
#include "progress.h"

namespace tightkv::tool {

inline constexpr int kCalibrationChunk = 512;

struct CalibrationPlan {
    std::string                            model_path, text_file; // for messages, and for what the profile says of itself
    uint64_t                               text_sum = 0;          // text_checksum() of the text; likewise
    const std::vector<std::vector<Token>>& chunks;                // of one length
    int64_t                                positions = 0;         // that the cache will be used at, from the length of a chunk on
    int                                    threads   = 1;
};

uint64_t text_checksum(const std::string& text);

// False: interrupted. Throws Failure where the text or the model cannot be calibrated on. Progress counts tokens.
bool calibrate(const Model& model, const CalibrationPlan& plan, Progress& progress, Profile& out);

// The profile of a model in the cache folder, made there at first use (or where the file is damaged, or of another model or text) from the
// text that comes with the project, for the positions of one chunk. Empty: interrupted.
std::string profile_in_cache(const Model& model, const std::string& model_path, int threads);

} // namespace tightkv::tool
