#include "steps.h"

#include <algorithm>

namespace tightkv::tool {

namespace {

constexpr int kMostSequences = 16, kMostCells = 16384; // together decoded; cells bound the memory

bool scored(int position, int ctx) { return position >= first_scored(ctx) && position <= ctx - 2; }

void feed(Step& s, const std::vector<Token>& chunk, size_t c, int position, int sequence) {
    const bool out = scored(position, static_cast<int>(chunk.size()));
    if (out) s.outputs.push_back({static_cast<int>(s.tokens.size()), c, chunk[static_cast<size_t>(position) + 1]});
    s.tokens.push_back({chunk[static_cast<size_t>(position)], position, sequence, out});
}

// Positions [from, to) of a chunk in batches.
void feed_batches(std::vector<Step>& steps, const std::vector<Token>& chunk, size_t c, int from, int to, int sequence, int batch) {
    for (int p = from; p < to; p += batch) {
        Step s;
        for (int i = p; i < std::min(p + batch, to); i++) feed(s, chunk, c, i, sequence);
        steps.push_back(std::move(s));
    }
}

} // namespace

int first_scored(int ctx) { return ctx / 2; }

int decode_group(int chunks, int ctx) {
    const int most   = std::clamp(kMostCells / ctx, 1, kMostSequences);
    const int groups = (chunks + most - 1) / most;
    return (chunks + groups - 1) / groups;
}

std::vector<Step> batched_steps(const Chunks& chunks, int batch) {
    std::vector<Step> steps;
    for (size_t c = 0; c < chunks.size(); c++) {
        const size_t first = steps.size();
        feed_batches(steps, chunks[c], c, 0, static_cast<int>(chunks[c].size()), 0, batch);
        steps[first].fresh = true;
    }
    return steps;
}

std::vector<Step> decode_steps(const Chunks& chunks, int group, int from, int batch) {
    std::vector<Step> steps;
    for (size_t g = 0; g < chunks.size(); g += static_cast<size_t>(group)) {
        const size_t end   = std::min(g + static_cast<size_t>(group), chunks.size());
        const size_t first = steps.size();
        for (size_t c = g; c < end; c++) feed_batches(steps, chunks[c], c, 0, from, static_cast<int>(c - g), batch);
        const int last = static_cast<int>(chunks[g].size()) - 1; // its successor is not known
        for (int p = from; p < last; p++) {
            Step s;
            for (size_t c = g; c < end; c++) feed(s, chunks[c], c, p, static_cast<int>(c - g));
            steps.push_back(std::move(s));
        }
        steps[first].fresh = true;
    }
    return steps;
}

std::vector<Step> check_steps(const std::vector<Step>& steps, const Chunks& chunks, size_t most) {
    std::vector<Step> check;
    for (size_t i = 0; i < std::min(most, steps.size()) && (i == 0 || !steps[i].fresh); i++) {
        Step s = steps[i];
        s.outputs.clear();
        for (size_t t = 0; t < s.tokens.size(); t++) {
            const size_t c     = static_cast<size_t>(s.tokens[t].sequence); // the first group: sequence = chunk
            const auto   next  = static_cast<size_t>(s.tokens[t].position) + 1;
            s.tokens[t].output = next < chunks[c].size();
            if (s.tokens[t].output) s.outputs.push_back({static_cast<int>(t), c, chunks[c][next]});
        }
        check.push_back(std::move(s));
    }
    return check;
}

} // namespace tightkv::tool
