// Quality of caches: the f16 cache and all candidates side by side on the same tokens, compared position by position.
//
// Paths:
//   batched  a chunk goes in as batches of up to 512 tokens
//   decode   one token at a time and sequence, on top of the candidate's own cache; several chunks are decoded together as separate
//            sequences, which shares the reading of the weights and nothing else
// Scored are positions ctx/2 … ctx-2 of every chunk, each against the token that follows (as in llama-perplexity).
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cache_choice.h"
#include "engine_llama.h"
#include "lab_rows.h"
#include "metrics.h"
#include "progress.h"
#include "table.h"

namespace tightkv::tool {

inline constexpr std::string_view kPaths[] = {"batched", "decode"};

struct QualityPlan {
    std::vector<CacheChoice>        candidates; // the reference is added by itself
    std::vector<std::string>        paths;
    std::vector<std::vector<Token>> chunks; // all of one length
    int                             threads     = 1;
    int                             decode_from = 0;       // decode path: tokens before this position go in as batches
    LabFits*                        lab         = nullptr; // where there are candidates of the lab
};

struct QualityRow {
    std::string cache, path;
    double      bits_per_value = 0;
    int64_t     cache_bytes    = 0; // of the cells of one sequence
    Summary     summary;
    double      dppl    = 0; // ppl - ppl of the reference
    double      seconds = 0; // in llama_decode

    std::optional<MeanError> dkld; // kld - kld of the candidate before; none for the reference and the first candidate
};

struct QualityResult {
    std::vector<QualityRow> rows;                   // by path; the reference first
    int64_t                 cells          = 0;     // of one sequence: what bits and bytes are of
    bool                    adapter_active = false; // every candidate of ours was computed by the adapter, and there was one
    bool                    interrupted    = false; // rows hold what was measured so far
};

std::vector<std::string> parse_paths(std::string_view list); // throws Failure

// Units for Progress.
double quality_units(const QualityPlan& plan);

// Throws Failure; in particular when an f16 cache does not reproduce itself exactly, which is checked first on every path.
QualityResult measure_quality(const Model& model, const QualityPlan& plan, Progress& progress);

Json                to_row(const QualityRow& r);
std::vector<Column> quality_columns();

} // namespace tightkv::tool
