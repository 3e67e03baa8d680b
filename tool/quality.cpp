#include "quality.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <memory>
#include <thread>

#include <fmt/format.h>

#include "errors.h"
#include "interrupt.h"
#include "number_list.h"
#include "self_check.h"
#include "steps.h"

namespace tightkv::tool {

namespace {

constexpr int    kBatch        = 512;
constexpr size_t kCheckSteps   = 32;
constexpr double kStepOverhead = 14; // a step of the decode path costs about as much as this many tokens of a batch

const CacheChoice kReference{.name = "f16", .stock = true, .spec = {}, .lab = {}};

// f(i) for i in [0, n), on up to `threads` threads.
template <class F> void parallel_for(size_t n, int threads, const F& f) {
    std::atomic<size_t> next{0};
    const auto          work = [&] {
        for (size_t i; (i = next++) < n;) f(i);
    };
    std::vector<std::jthread> pool;
    for (size_t t = 1; t < std::min(n, static_cast<size_t>(threads)); t++) pool.emplace_back(work);
    work();
}

// One path: a context per cache, the reference first.
class Lanes {
public:
    Lanes(const Model& model, const std::vector<CacheChoice>& caches, ContextOptions o, size_t chunks, LabFits* lab)
        : threads_(o.threads), caches_(caches) {
        for (const CacheChoice& c : caches) {
            observers_.push_back(c.lab.empty() ? nullptr : lab->observer(c));
            o.observer = observers_.back().get();
            contexts_.push_back(std::make_unique<Context>(model, c.lab.empty() ? c : kReference, o));
            scores_.emplace_back(chunks);
        }
    }

    // False: interrupted, nothing of this step was scored.
    bool run(const Step& step) {
        for (const auto& c : contexts_) {
            if (step.fresh) c->clear();
            if (!c->decode(step.tokens)) return false;
            if (!c->cache().stock && c->native_attention() == 0)
                throw failure(
                    fmt::format("the adapter left cache '{}' to llama.cpp: it cannot compute attention of this model", c->cache().name));
        }
        std::vector<std::vector<std::span<const float>>> logits(contexts_.size()); // asked for on this thread: llama.cpp may reorder them
        for (size_t k = 0; k < contexts_.size(); k++)
            for (const ScoredOutput& o : step.outputs) logits[k].push_back(contexts_[k]->logits(o.index));
        std::vector<std::vector<PositionScore>> found(step.outputs.size(), std::vector<PositionScore>(contexts_.size()));
        parallel_for(step.outputs.size(), threads_, [&](size_t i) {
            thread_local ReferencePosition reference;
            const Token                    next = step.outputs[i].next;
            set_reference(reference, logits[0][i], next);
            found[i][0] = {.nll = reference.nll, .kld = 0, .top1 = true};
            for (size_t k = 1; k < contexts_.size(); k++) found[i][k] = score(reference, logits[0][i], logits[k][i], next);
        });
        for (size_t i = 0; i < found.size(); i++)
            for (size_t k = 0; k < contexts_.size(); k++) {
                if (!finite(found[i][k])) throw failure(fmt::format("cache '{}' gave logits that are not finite", caches_[k].name));
                scores_[k].add(step.outputs[i].chunk, found[i][k]);
            }
        return true;
    }

    const std::vector<std::unique_ptr<Context>>& contexts() const { return contexts_; }
    const std::vector<Scores>&                   scores() const { return scores_; }

private:
    int                                       threads_;
    std::vector<CacheChoice>                  caches_;
    std::vector<std::unique_ptr<RowObserver>> observers_; // outlive the contexts
    std::vector<std::unique_ptr<Context>>     contexts_;
    std::vector<Scores>                       scores_;
};

struct Path {
    ContextOptions    options;
    std::vector<Step> steps, check;
};

Path plan_path(const QualityPlan& plan, const std::string& name) {
    const int ctx = static_cast<int>(plan.chunks.front().size()), batch = std::min(ctx, kBatch);
    Path      p;
    if (name == "batched") {
        p.steps             = batched_steps(plan.chunks, batch);
        p.check             = check_steps(p.steps, plan.chunks, p.steps.size());
        p.options.sequences = 1;
    } else {
        p.options.sequences = decode_group(static_cast<int>(plan.chunks.size()), ctx);
        p.steps             = decode_steps(plan.chunks, p.options.sequences, plan.decode_from, batch);
        // Always one token at a time, whatever the measurement does.
        p.check = check_steps(decode_steps(plan.chunks, p.options.sequences, 0, batch), plan.chunks, kCheckSteps);
    }
    p.options.tokens  = ctx;
    p.options.threads = plan.threads;
    p.options.batch   = std::max(batch, p.options.sequences);
    p.options.outputs = 1;
    for (const std::vector<Step>* steps : {&p.steps, &p.check})
        for (const Step& s : *steps) p.options.outputs = std::max(p.options.outputs, static_cast<int>(s.outputs.size()));
    return p;
}

double units(const Step& s) { return kStepOverhead + static_cast<double>(s.tokens.size()); }

std::vector<CacheChoice> with_reference(const std::vector<CacheChoice>& candidates) {
    std::vector<CacheChoice> all = {kReference};
    for (const CacheChoice& c : candidates)
        if (c.name != kReference.name) all.push_back(c);
    return all;
}

// An f16 cache against itself: anything but exactly 0 means that the comparison would not measure the caches.
bool self_check(const Model& model, const Path& path, const std::string& name, size_t chunks, Progress& progress) {
    progress.stage(name + ": checking f16 against itself");
    Lanes lanes(model, {kReference, kReference}, path.options, chunks, nullptr);
    for (const Step& s : path.check) {
        if (!lanes.run(s)) return false;
        progress.advance(2 * units(s));
    }
    require_identical(name, lanes.scores()[0].summary(), lanes.scores()[1].summary());
    return true;
}

} // namespace

std::vector<std::string> parse_paths(std::string_view list) {
    return parse_names(std::string(list), "path", {std::begin(kPaths), std::end(kPaths)});
}

double quality_units(const QualityPlan& plan) {
    double total = 0;
    for (const std::string& name : plan.paths) {
        const Path p = plan_path(plan, name);
        for (const Step& s : p.steps) total += units(s) * static_cast<double>(with_reference(plan.candidates).size());
        for (const Step& s : p.check) total += units(s) * 2;
    }
    return total;
}

QualityResult measure_quality(const Model& model, const QualityPlan& plan, Progress& progress) {
    const std::vector<CacheChoice> caches = with_reference(plan.candidates);
    QualityResult                  result;
    result.adapter_active = std::any_of(caches.begin(), caches.end(), [](const CacheChoice& c) { return !c.stock; });
    for (const CacheChoice& c : caches) require_head_dim(model, c); // before time is spent on the other caches

    std::vector<Path> paths;
    for (const std::string& name : plan.paths) {
        paths.push_back(plan_path(plan, name));
        if (!self_check(model, paths.back(), name, plan.chunks.size(), progress)) {
            result.interrupted = true, result.adapter_active = false;
            return result;
        }
    }
    for (size_t i = 0; i < paths.size() && !result.interrupted; i++) {
        const Path& path = paths[i];
        Lanes       lanes(model, caches, path.options, plan.chunks.size(), plan.lab);
        progress.stage(plan.paths[i] + " path");
        for (const Step& s : path.steps) {
            if (!lanes.run(s)) {
                result.interrupted = true;
                break;
            }
            progress.advance(static_cast<double>(caches.size()) * units(s));
        }
        if (lanes.scores()[0].empty()) {
            if (result.rows.empty()) result.adapter_active = false; // interrupted before anything was known
            continue;
        }
        const double reference_ppl = lanes.scores()[0].summary().ppl;
        for (size_t k = 0; k < caches.size(); k++) {
            const Context& c = *lanes.contexts()[k];
            QualityRow     r;
            r.cache          = caches[k].name;
            r.path           = plan.paths[i];
            r.bits_per_value = c.bits_per_value();
            r.cache_bytes    = c.cache_bytes() / path.options.sequences;
            result.cells     = c.cells();
            if (!caches[k].lab.empty()) { // the f16 cache that it lives in says nothing of it
                const double f16 = r.bits_per_value;
                r.bits_per_value = plan.lab->bits_per_value(caches[k]);
                r.cache_bytes    = std::llround(static_cast<double>(r.cache_bytes) * r.bits_per_value / f16);
            }
            r.summary = lanes.scores()[k].summary();
            r.dppl    = r.summary.ppl - reference_ppl;
            r.seconds = c.seconds();
            if (k >= 2) r.dkld = kld_difference(lanes.scores()[k], lanes.scores()[k - 1]);
            result.rows.push_back(std::move(r));
        }
    }
    return result;
}

Json to_row(const QualityRow& r) {
    const Summary& s = r.summary;
    return {{"cache", r.cache},
            {"path", r.path},
            {"bits_per_value", r.bits_per_value},
            {"cache_bytes", r.cache_bytes},
            {"ppl", s.ppl},
            {"ppl_se", s.ppl_se},
            {"dppl", r.dppl},
            {"kld", s.kld},
            {"kld_se", s.kld_se},
            {"dkld", r.dkld ? Json(r.dkld->mean) : Json()},
            {"dkld_se", r.dkld ? Json(r.dkld->se) : Json()},
            {"kld_median", s.kld_median},
            {"kld_p99", s.kld_p99},
            {"kld_p999", s.kld_p999},
            {"top1", s.top1},
            {"n_tokens", s.n_tokens},
            {"seconds", r.seconds}};
}

std::vector<Column> quality_columns() {
    return {{"cache", "cache", ""},
            {"path", "path", ""},
            {"bits_per_value", "bits/value", "{:.3f}"},
            {"cache_bytes", "bytes", ""},
            {"ppl", "PPL", "{:.4f}"},
            {"ppl_se", "±", "{:.4f}"},
            {"dppl", "ΔPPL", "{:+.4f}"},
            {"kld", "KLD", "{:.5f}"},
            {"kld_se", "±", "{:.5f}"},
            {"dkld", "ΔKLD", "{:+.5f}"},
            {"dkld_se", "±", "{:.5f}"},
            {"kld_median", "median", "{:.5f}"},
            {"kld_p99", "99 %", "{:.4f}"},
            {"kld_p999", "99.9 %", "{:.4f}"},
            {"top1", "same top-1", "{:.4f}"},
            {"n_tokens", "tokens", ""},
            {"seconds", "s", "{:.1f}"}};
}

} // namespace tightkv::tool
