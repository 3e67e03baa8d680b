#include "attention_rounds.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "bench/rounds.h"
#include "cpu/kernel_table.h"
#include "interrupt.h"

namespace tightkv::tool {

namespace {

constexpr double kLeastSeconds = 0.02; // of one side in one round

double ns_per_token(const Side& s, const bench::AttentionShape& shape) {
    return bench::median(s.seconds) / static_cast<double>(shape.n_kv) * 1e9;
}

} // namespace

std::vector<double> time_rounds(std::vector<Side>& sides, int rounds, bench::ReadBandwidth* bandwidth, Progress& progress) {
    std::vector<double> read;
    for (int round = 0; round < rounds && !interrupted(); round++) {
        for (Side& s : sides) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10)); // the threads of the side before have gone to sleep
            s.seconds.push_back(s.contender->time(kLeastSeconds));
            progress.advance(1);
        }
        if (bandwidth) read.push_back(bandwidth->gb_per_s());
    }
    return read;
}

Json row_of(const Side& s, const std::vector<Side>& sides, const bench::AttentionShape& shape, int threads, double bandwidth) {
    const double speed = s.contender->layer_bytes / bench::median(s.seconds) * 1e-9;
    Json         ratio = Json::object(), rivals = Json::object();
    for (const Side& r : sides) {
        if (r.contender->ours) continue;
        ratio[r.contender->name]  = ns_per_token(r, shape) / ns_per_token(s, shape);
        rivals[r.contender->name] = {{"ns_per_token", ns_per_token(r, shape)},
                                     {"spread", bench::spread(r.seconds)},
                                     {"max_rel_error", r.verdict.max_rel_error},
                                     {"layers", r.contender->layers},
                                     {"huge_pages", r.contender->huge()}};
    }
    return {{"format", s.contender->name},
            {"depth", shape.n_tokens == 1 ? shape.n_kv : shape.n_kv - shape.n_tokens},
            {"tokens", shape.n_tokens},
            {"threads", threads},
            {"isa", kernels().name},
            {"ns_per_token", ns_per_token(s, shape)},
            {"spread", bench::spread(s.seconds)},
            {"ms", bench::median(s.seconds) * 1e3},
            {"gb_per_s", speed},
            {"bandwidth_fraction", bandwidth > 0 ? Json(speed / bandwidth) : Json()},
            {"ratio", ratio},
            {"max_rel_error", s.verdict.max_rel_error},
            {"error_bound", s.verdict.bound},
            {"checked_rows", s.verdict.rows},
            {"head_dim", shape.head_dim},
            {"q_heads", shape.n_heads},
            {"kv_heads", shape.n_kv_heads},
            {"n_kv", shape.n_kv},
            {"layers", s.contender->layers},
            {"cache_mib", s.contender->layer_bytes * s.contender->layers / (1 << 20)},
            {"huge_pages", s.contender->huge()},
            {"rivals", rivals}};
}

bool all_huge(const std::vector<Json>& rows) {
    const auto huge = [](const Json& x) { return x["huge_pages"] > 0.9; };
    return !rows.empty() && std::all_of(rows.begin(), rows.end(), [&](const Json& r) {
        return huge(r) && std::all_of(r["rivals"].begin(), r["rivals"].end(), huge);
    });
}

} // namespace tightkv::tool
