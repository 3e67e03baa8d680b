#include "speed.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "errors.h"
#include "interrupt.h"

namespace tightkv::tool {

namespace {

constexpr int    kSequence   = 0;   // the one that decodes; blocks are sequences 1, 2, …
constexpr int    kMargin     = 256; // cells beside the deepest block
constexpr double kTokenUnits = 10;  // a decoded token costs about as much as this many tokens of the block

int blocks(int depth) { return depth / kDepthBlock; }

struct Lane {
    std::unique_ptr<Context> context;
    std::vector<uint8_t>     block;      // the saved sequence
    int                      filled = 0; // blocks
    std::vector<double>      rounds;     // tokens per second at this depth
};

// The depth grows to `wanted` blocks. False: interrupted.
bool fill(Lane& lane, int wanted, const std::vector<Token>& tokens) {
    for (; lane.filled < wanted; lane.filled++) {
        const int sequence = lane.filled + 1;
        if (lane.filled == 0) {
            std::vector<BatchToken> batch;
            for (int i = 0; i < kDepthBlock; i++) batch.push_back({tokens[static_cast<size_t>(i)], i, sequence, false});
            if (!lane.context->decode(batch)) return false;
            lane.block = lane.context->save(sequence);
        } else {
            lane.context->restore(sequence, lane.block);
        }
    }
    // Shared after all are there: a saved block must belong to one sequence.
    for (int s = 1; s <= wanted; s++) lane.context->share(s, kSequence);
    if (wanted > 0 && lane.context->next_position(kSequence) != kDepthBlock)
        throw failure(fmt::format("cache '{}' could not be filled for the speed measurement", lane.context->cache().name));
    return true;
}

// Decodes n tokens and forgets them. Seconds; negative: interrupted.
double decode(Lane& lane, int n, const std::vector<Token>& tokens) {
    const int    start  = lane.context->next_position(kSequence);
    const double before = lane.context->seconds();
    for (int i = 0; i < n; i++) {
        const BatchToken t{tokens[static_cast<size_t>(kDepthBlock + i)], start + i, kSequence, true};
        if (!lane.context->decode({&t, 1})) return -1;
    }
    const double seconds = lane.context->seconds() - before;
    lane.context->remove(kSequence, start);
    return seconds;
}

double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x.size() % 2 ? x[x.size() / 2] : (x[x.size() / 2 - 1] + x[x.size() / 2]) / 2;
}

} // namespace

double speed_units(const SpeedPlan& plan) {
    return static_cast<double>(plan.caches.size()) *
           (kDepthBlock + kTokenUnits * static_cast<double>(plan.depths.size()) * (plan.rounds * plan.tokens_per_round + 1));
}

std::vector<SpeedRow> measure_speed(const Model& model, const SpeedPlan& plan, Progress& progress, double scale) {
    const int      deepest = *std::max_element(plan.depths.begin(), plan.depths.end());
    ContextOptions o;
    o.tokens    = deepest + kMargin;
    o.sequences = blocks(deepest) + 1;
    o.unified   = true;
    o.batch     = kDepthBlock;
    o.outputs   = 1;
    o.threads   = plan.threads;

    std::vector<Lane>     lanes;
    std::vector<SpeedRow> rows;
    for (const CacheChoice& c : plan.caches) {
        lanes.push_back({.context = std::make_unique<Context>(model, c, o), .block = {}, .filled = 0, .rounds = {}});
        rows.push_back({.cache = c.name, .tokens_per_second = {}, .cache_bytes = lanes.back().context->cache_bytes(), .cells = o.tokens});
    }
    for (const int depth : plan.depths) {
        progress.stage(fmt::format("decode speed at depth {}", depth));
        for (Lane& lane : lanes) {
            const bool first = lane.filled == 0 && depth > 0;
            lane.rounds.clear();
            if (!fill(lane, blocks(depth), plan.tokens) || decode(lane, 1, plan.tokens) < 0) return rows;
            progress.advance(scale * (kTokenUnits + (first ? kDepthBlock : 0)));
        }
        for (int round = 0; round < plan.rounds; round++)
            for (Lane& lane : lanes) { // alternating: a slow moment of the machine hits all caches
                const double seconds = decode(lane, plan.tokens_per_round, plan.tokens);
                if (seconds < 0) return rows;
                lane.rounds.push_back(plan.tokens_per_round / seconds);
                progress.advance(scale * kTokenUnits * plan.tokens_per_round);
            }
        for (size_t k = 0; k < lanes.size(); k++) rows[k].tokens_per_second.push_back(median(lanes[k].rounds));
    }
    for (size_t k = 0; k < lanes.size(); k++)
        if (!plan.caches[k].stock && lanes[k].context->native_attention() == 0)
            throw failure(
                fmt::format("the adapter left cache '{}' to llama.cpp: it cannot compute attention of this model", plan.caches[k].name));
    return rows;
}

} // namespace tightkv::tool
