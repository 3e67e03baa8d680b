// Statistics of a graph's rows and queries; the profile of them put to use.
#include "ggml/self_profile.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <utility>

#include "ggml/exact_cache.h"
#include "ggml/key_rope.h"
#include "ggml/kv_buffer.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

bool all_finite(std::span<const float> x) {
    return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

} // namespace

void SelfProfile::begin_batch(std::span<CacheTensor* const> tensors) {
    if (done_ || std::exchange(running_, false)) return; // the batch before broke off: nothing can be said of what it did not show
    if (ready(tensors, true)) try_solve(tensors);        // where the host computes nodes one by one, the last of a batch write nothing
    if (done_) return;
    static constexpr const char* kNone[] = {"no keys", "no values that are compressed (is flash attention off?)",
                                            "no queries (its attention does not run on compressed rows)"};
    for (const auto& [block, n] : seen_) {
        const int64_t most = *std::max_element(n.begin(), n.end()), fewest = *std::min_element(n.begin(), n.end());
        const auto    kind = static_cast<size_t>(std::min_element(n.begin(), n.end()) - n.begin());
        if (most > 0 && fewest == 0) return give_up(tensors, "block " + std::to_string(block) + " shows " + kNone[kind]);
        // Rows that are not finite do not count. The others will be as few as these.
        if (most >= kMinCalibrationTokens && fewest < most / 2)
            return give_up(tensors, "block " + std::to_string(block) + " has too many keys, values or queries that are not finite");
    }
}

void SelfProfile::add_rows(CacheTensor& c, const ggml_tensor* node) {
    const size_t n = static_cast<size_t>(c.n_embd());
    const int    d = c.head_dim();
    running_       = true;
    rows_.clear();
    const bool all = c.each_row(node, [&](size_t i, int stream, int64_t cell, std::span<const float> x) {
        c.keep_row(stream, cell, x.data());
        const int32_t position = c.exact_cache()->position(i);
        if (SelfCalibration::left_out(position) || !all_finite(x)) return;
        last_position_ = std::max<int64_t>(last_position_, position);
        rows_.insert(rows_.end(), x.begin(), x.end());
    });
    if (!all || rows_.empty()) return; // write_rows() will say what is wrong
    const bool keys = c.operand() == Operand::K;
    statistics_.add_rows(c.block(), c.operand(), d, static_cast<int>(c.n_embd() / d), rows_);
    if (keys) statistics_.set_rope(c.block(), rope_of_rows(node, d));
    seen_[c.block()][keys ? kKeys : kValues] += static_cast<int64_t>(rows_.size() / n);
}

void SelfProfile::add_queries(const CacheTensor& k, const ggml_tensor* q) {
    const size_t      d = static_cast<size_t>(q->ne[0]), heads = static_cast<size_t>(q->ne[2]);
    const size_t      tokens = static_cast<size_t>(q->ne[1]), streams = static_cast<size_t>(q->ne[3]), n = d * heads;
    const ExactCache& batch   = *k.exact_cache();
    const bool        ordered = batch.n_tokens() == tokens * streams;
    rows_.clear();
    for (size_t s = 0; s < streams; s++)
        for (size_t t = 0; t < tokens; t++) {
            if (ordered && SelfCalibration::left_out(batch.position(s * tokens + t))) continue;
            const size_t at = rows_.size();
            rows_.resize(at + n);
            for (size_t h = 0; h < heads; h++)
                std::memcpy(&rows_[at + h * d], static_cast<const char*>(q->data) + t * q->nb[1] + h * q->nb[2] + s * q->nb[3],
                            d * sizeof(float));
            if (!all_finite(std::span(rows_).subspan(at))) rows_.resize(at);
        }
    if (rows_.empty()) return;
    statistics_.add_queries(k.block(), static_cast<int>(d), static_cast<int>(heads), static_cast<int>(k.n_embd()) / static_cast<int>(d),
                            rows_);
    seen_[k.block()][kQueries] += static_cast<int64_t>(rows_.size() / n);
}

void SelfProfile::graph_done(std::span<CacheTensor* const> tensors) {
    running_ = false;
    if (!done_ && ready(tensors, false)) try_solve(tensors);
}

bool SelfProfile::ready(std::span<CacheTensor* const> tensors, bool whole_batch) const {
    for (const CacheTensor* c : tensors) { // the host may compute the layers of a batch one after the other
        if (!c->takes_self_profile()) continue;
        const auto at = seen_.find(c->block());
        if (at == seen_.end() ? !whole_batch : *std::min_element(at->second.begin(), at->second.end()) < kMinCalibrationTokens)
            return false;
    }
    return !seen_.empty();
}

void SelfProfile::try_solve(std::span<CacheTensor* const> tensors) {
    try {
        solve(tensors);
    } catch (const std::exception& e) { // out of memory
        give_up(tensors, e.what());
    }
}

void SelfProfile::solve(std::span<CacheTensor* const> tensors) {
    using Clock           = std::chrono::steady_clock;
    const auto    start   = Clock::now();
    const int64_t n_cells = tensors.front()->n_cells(), tokens = statistics_.tokens();
    const int64_t offsets = std::max<int64_t>(n_cells - last_position_, 1);
    Profile       profile;
    if (const Status s = statistics_.solve(offsets, profile); !s.ok()) return give_up(tensors, s.message());
    std::vector<std::vector<std::shared_ptr<const Transform>>> made; // all of them before any is used
    for (const CacheTensor* c : tensors) {
        const LayerProfile* const l = profile.layer_of_block(c->block());
        made.push_back(l ? profile.transforms(*l, c->operand(), c->takes_means()) : std::vector<std::shared_ptr<const Transform>>{});
    }
    for (size_t i = 0; i < made.size(); i++)
        if (!made[i].empty() && tensors[i]->takes_self_profile()) tensors[i]->use_self_profile(std::move(made[i]));
    stop(tensors);
    stats().self_profiles++;
    char line[160];
    std::snprintf(line, sizeof line, "profile=auto: calibrated on the first %lld tokens, for %lld positions, in %.2f s",
                  static_cast<long long>(tokens), static_cast<long long>(last_position_ + offsets),
                  std::chrono::duration<double>(Clock::now() - start).count());
    inform(line);
}

void SelfProfile::stop(std::span<CacheTensor* const> tensors) {
    done_       = true;
    statistics_ = {};
    seen_.clear();
    rows_ = {};
    for (CacheTensor* c : tensors) c->drop_kept_rows();
}

void SelfProfile::give_up(std::span<CacheTensor* const> tensors, const std::string& why) {
    stop(tensors);
    say_once("profile=auto is off: " + why + "; the cache goes on without a profile");
}

} // namespace tightkv
