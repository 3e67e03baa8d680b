#include "speed.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

namespace {

constexpr int    kMargin     = 256; // cells beside the deepest block: a multiple of this
constexpr double kTokenUnits = 10;  // a decoded token costs about as much as this many tokens of the block
// Of a rival's logits with ours. Seen where both compute the same: .97 (other roundings of activations, caches of 4 bits) to .9997.
// ik_llama.cpp gave .83 with Q4_1 weights, whose batches of 32 tokens and more it computed wrongly on AVX2.
constexpr double kCorrelation = 0.9;

int blocks(int depth) { return depth / kDepthBlock; }

struct Lane {
    std::unique_ptr<SpeedLane> lane;
    const Context*             ours   = nullptr; // of a lane in this process
    bool                       filled = false;
    std::vector<double>        decode, prefill; // tokens per second at this depth, by round
};

// One more round of a lane; false: interrupted.
bool measure_round(Lane& lane, const SpeedPlan& plan) {
    const double decode = lane.lane->rate(plan.decode_tokens, 1);
    if (decode < 0) return false;
    lane.decode.push_back(decode);
    if (plan.prefill_tokens == 0) return true;
    const double prefill = lane.lane->rate(plan.prefill_tokens, kDepthBlock);
    if (prefill >= 0) lane.prefill.push_back(prefill);
    return prefill >= 0;
}

double correlation(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return 0;
    const auto mean = [](const std::vector<float>& x) { return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size()); };
    const double mean_a = mean(a), mean_b = mean(b);
    double       aa = 0, ab = 0, bb = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double x = a[i] - mean_a, y = b[i] - mean_b;
        aa += x * x, ab += x * y, bb += y * y;
    }
    return ab / std::sqrt(aa * bb);
}

// Do the rivals compute this model? False: interrupted.
bool check_rivals(std::vector<Lane>& lanes) {
    const std::vector<float> want = lanes.front().lane->probe();
    if (want.empty()) return false;
    for (const Lane& lane : lanes) {
        if (lane.ours) continue;
        const std::vector<float> got = lane.lane->probe();
        if (got.empty()) return false;
        if (const double c = correlation(got, want); !(c >= kCorrelation))
            throw failure(
                fmt::format("{} computes something else: after {} tokens its logits have a correlation of {:.3f} with those of cache "
                            "'{}', expected {} and more",
                            lane.lane->name, kProbeTokens, c, lanes.front().lane->name, kCorrelation));
    }
    return true;
}

Rate summary(const std::vector<double>& rounds, const std::vector<double>& first) {
    return {bench::median(rounds), bench::spread(rounds), bench::paired_ratio(rounds, first)};
}

double round_units(const SpeedPlan& plan) { return kTokenUnits * plan.decode_tokens + plan.prefill_tokens; }

} // namespace

double speed_units(const SpeedPlan& plan) {
    return static_cast<double>(plan.caches.size() + plan.rivals.size()) *
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
        auto           lane    = std::make_unique<ContextLane<Context>>(c.name, std::make_unique<Context>(model, c, o), plan.tokens);
        const Context& context = lane->context();
        rows.push_back({.cache          = c.name,
                        .decode         = {},
                        .prefill        = {},
                        .bits_per_value = context.bits_per_value(),
                        .cache_bytes    = context.cache_bytes(),
                        .cells          = o.tokens});
        lanes.push_back({.lane = std::move(lane), .ours = &context, .decode = {}, .prefill = {}});
    }
    for (const RivalCache& c : plan.rivals) {
        RivalLane r = start_rival_model(c, model.path(), o, plan.tokens);
        rows.push_back({.cache          = c.name(),
                        .decode         = {},
                        .prefill        = {},
                        .bits_per_value = stock_bits_per_value(c.type),
                        .cache_bytes    = static_cast<int64_t>(r.cache_bytes),
                        .cells          = o.tokens});
        lanes.push_back({.lane = std::move(r.lane), .decode = {}, .prefill = {}});
    }
    if (!plan.rivals.empty() && !check_rivals(lanes)) return rows;
    for (const int depth : plan.depths) {
        progress.stage(fmt::format("speed at depth {}", depth));
        for (Lane& lane : lanes) {
            const bool first = !lane.filled && depth > 0;
            lane.filled      = depth > 0;
            lane.decode.clear(), lane.prefill.clear();
            if (!lane.lane->fill(blocks(depth)) || lane.lane->rate(1, 1) < 0) return rows;
            progress.advance(scale * (kTokenUnits + (first ? kDepthBlock : 0)));
        }
        // Alternating: a slow moment of the machine hits all caches, and none is always first.
        for (int round = 0; round < plan.rounds; round++)
            for (size_t k = 0; k < lanes.size(); k++) {
                Lane& lane = lanes[(k + static_cast<size_t>(round)) % lanes.size()];
                if (!measure_round(lane, plan)) return rows;
                progress.advance(scale * round_units(plan));
            }
        for (size_t k = 0; k < lanes.size(); k++) {
            rows[k].decode.push_back(summary(lanes[k].decode, lanes[0].decode));
            if (!lanes[k].prefill.empty()) rows[k].prefill.push_back(summary(lanes[k].prefill, lanes[0].prefill));
        }
    }
    for (size_t k = 0; k < plan.caches.size(); k++)
        if (!plan.caches[k].stock && lanes[k].ours->native_attention() == 0)
            throw failure(
                fmt::format("the adapter left cache '{}' to llama.cpp: it cannot compute attention of this model", plan.caches[k].name));
    return rows;
}

} // namespace tightkv::tool
