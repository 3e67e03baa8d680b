// The sides of one attention measurement, timed in turn, and the rows of the result.
#pragma once
#include <memory>
#include <vector>

#include "bench/bandwidth.h"
#include "bench/contender.h"
#include "progress.h"
#include "table.h"

namespace tightkv::tool {

struct Side {
    std::unique_ptr<bench::Contender> contender;
    bench::Verdict                    verdict;
    std::vector<double>               seconds; // per operation, by round
};

// Rounds of all sides in turn: a slow moment of the machine hits all; fewer when interrupted. Returns the read bandwidth by round, GB/s, or
// nothing where there is none to measure.
std::vector<double> time_rounds(std::vector<Side>& sides, int rounds, bench::ReadBandwidth* bandwidth, Progress& progress);

// Fields of one side of ours, and what the rivals among `sides` took. bandwidth: GB/s, 0 if not measured.
Json row_of(const Side& s, const std::vector<Side>& sides, const bench::AttentionShape& shape, int threads, double bandwidth);
bool all_huge(const std::vector<Json>& rows); // huge pages on every side of every row

} // namespace tightkv::tool
