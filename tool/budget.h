// A format for every layer and operand within an average number of bits. What one unit (K or V of one layer) costs is measured: KLD with
// its rows alone coded, everything else exact. Costs of units add up, and follow the variance of the coding noise, so one format is
// measured and the others are known from their distortion.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "cache/profile.h"
#include "engine_llama.h"
#include "metrics.h"
#include "progress.h"

namespace tightkv::tool {

struct BudgetUnit {
    int    head_dim = 0;
    double values   = 0; // per token
    double kld      = 0; // measured in the first of the formats
};
struct BudgetFormat {
    FormatId id{};
    double   distortion = 0; // mean squared error of a row relative to its square
};

// By bits, fewest first; the distortion is that of Gaussian rows, which transformed rows are.
std::vector<BudgetFormat> budget_formats(int head_dim);
// The format of every unit: from the cheapest of all, always the step that gains most per bit, while the average is within `bits`. Empty
// where not even the cheapest is.
std::vector<FormatId> choose_formats(std::span<const BudgetUnit> units, std::span<const BudgetFormat> formats, double bits);
// Average over all values.
double average_bits(std::span<const BudgetUnit> units, std::span<const FormatId> formats);

struct BudgetResult {
    FormatId uniform{}; // the best single format within the budget
    double   uniform_bits = 0, chosen_bits = 0;
    Summary  uniform_kld, chosen_kld; // on the held-out chunks
    bool     interrupted = false;
};

// Units for Progress.
double budget_steps(const Profile& p, size_t probe_chunks, size_t held_out_chunks);
// Measures every unit of the profile on `probe`, sets its formats, and compares with the uniform choice on `held_out`. The first four rows
// of every chunk stay exact, as beside sink=4. Chunks are all of one length. Throws Failure.
BudgetResult spend_budget(const Model& model, Profile& p, double bits, std::span<const std::vector<Token>> probe,
                          std::span<const std::vector<Token>> held_out, int threads, Progress& progress);

std::string budget_report(const Profile& p, const BudgetResult& r);

} // namespace tightkv::tool
