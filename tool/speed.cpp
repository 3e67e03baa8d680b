#include "speed.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "bench/rounds.h"
#include "errors.h"
#include "interrupt.h"

namespace tightkv::tool {

namespace {

constexpr int    kSequence   = 0;   // the one that decodes; blocks are sequences 1, 2, …
constexpr int    kMargin     = 256; // cells beside the deepest block: a multiple of this
constexpr double kTokenUnits = 10;  // a decoded token costs about as much as this many tokens of the block

int blocks(int depth) { return depth / kDepthBlock; }

struct Lane {
    std::unique_ptr<Context> context;
    std::vector<uint8_t>     block;           // the saved sequence
    int                      filled = 0;      // blocks
    std::vector<double>      decode, prefill; // tokens per second at this depth, by round
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

// Computes n tokens, at most `batch` at once, and forgets them. Tokens per second; negative: interrupted.
double rate(Lane& lane, int n, int batch, const std::vector<Token>& tokens) {
    const int    start  = lane.context->next_position(kSequence);
    const double before = lane.context->seconds();
    for (int i = 0; i < n; i += batch) {
        std::vector<BatchToken> step;
        for (int k = i; k < std::min(n, i + batch); k++)
            step.push_back(
                {tokens[static_cast<size_t>(kDepthBlock + k) % tokens.size()], start + k, kSequence, k + 1 == std::min(n, i + batch)});
        if (!lane.context->decode(step)) return -1;
    }
    const double seconds = lane.context->seconds() - before;
    lane.context->remove(kSequence, start);
    return n / seconds;
}

// One more round of a lane; false: interrupted.
bool measure_round(Lane& lane, const SpeedPlan& plan) {
    const double decode = rate(lane, plan.decode_tokens, 1, plan.tokens);
    if (decode < 0) return false;
    lane.decode.push_back(decode);
    if (plan.prefill_tokens == 0) return true;
    const double prefill = rate(lane, plan.prefill_tokens, kDepthBlock, plan.tokens);
    if (prefill >= 0) lane.prefill.push_back(prefill);
    return prefill >= 0;
}

Rate summary(const std::vector<double>& rounds) { return {bench::median(rounds), bench::spread(rounds)}; }

double round_units(const SpeedPlan& plan) { return kTokenUnits * plan.decode_tokens + plan.prefill_tokens; }

} // namespace

double speed_units(const SpeedPlan& plan) {
    return static_cast<double>(plan.caches.size()) *
           (kDepthBlock + static_cast<double>(plan.depths.size()) * (plan.rounds * round_units(plan) + kTokenUnits));
}

std::vector<SpeedRow> measure_speed(const Model& model, const SpeedPlan& plan, Progress& progress, double scale) {
    const int      deepest = *std::max_element(plan.depths.begin(), plan.depths.end());
    ContextOptions o;
    o.tokens    = deepest + (std::max(plan.prefill_tokens, plan.decode_tokens) + kMargin - 1) / kMargin * kMargin;
    o.sequences = blocks(deepest) + 1;
    o.unified   = true;
    o.batch     = kDepthBlock;
    o.outputs   = 1;
    o.threads   = plan.threads;

    std::vector<Lane>     lanes;
    std::vector<SpeedRow> rows;
    for (const CacheChoice& c : plan.caches) {
        Lane& lane   = lanes.emplace_back();
        lane.context = std::make_unique<Context>(model, c, o);
        rows.push_back({.cache          = c.name,
                        .decode         = {},
                        .prefill        = {},
                        .bits_per_value = lane.context->bits_per_value(),
                        .cache_bytes    = lane.context->cache_bytes(),
                        .cells          = o.tokens});
    }
    for (const int depth : plan.depths) {
        progress.stage(fmt::format("speed at depth {}", depth));
        for (Lane& lane : lanes) {
            const bool first = lane.filled == 0 && depth > 0;
            lane.decode.clear(), lane.prefill.clear();
            if (!fill(lane, blocks(depth), plan.tokens) || rate(lane, 1, 1, plan.tokens) < 0) return rows;
            progress.advance(scale * (kTokenUnits + (first ? kDepthBlock : 0)));
        }
        for (int round = 0; round < plan.rounds; round++)
            for (Lane& lane : lanes) { // alternating: a slow moment of the machine hits all caches
                if (!measure_round(lane, plan)) return rows;
                progress.advance(scale * round_units(plan));
            }
        for (size_t k = 0; k < lanes.size(); k++) {
            rows[k].decode.push_back(summary(lanes[k].decode));
            if (!lanes[k].prefill.empty()) rows[k].prefill.push_back(summary(lanes[k].prefill));
        }
    }
    for (size_t k = 0; k < lanes.size(); k++)
        if (!plan.caches[k].stock && lanes[k].context->native_attention() == 0)
            throw failure(
                fmt::format("the adapter left cache '{}' to llama.cpp: it cannot compute attention of this model", plan.caches[k].name));
    return rows;
}

} // namespace tightkv::tool
