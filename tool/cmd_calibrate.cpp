// tightkv calibrate: what the keys, values and queries of a text teach about a model.
#include <algorithm>
#include <chrono>
#include <filesystem>

#include <fmt/format.h>

#include "budget.h"
#include "cache/calibrate.h"
#include "commands.h"
#include "engine_llama.h"
#include "engine_llama_rows.h"
#include "errors.h"
#include "install_paths.h"
#include "interrupt.h"
#include "model_file.h"
#include "output.h"
#include "profile_report.h"
#include "progress.h"

namespace tightkv::tool {

namespace {

constexpr int kChunk       = 512;
constexpr int kBudgetChunk = 256, kProbes = 2, kHeldOut = 4; // for --budget: chunks that units are measured on, and those it is judged on
constexpr int kSkip = 4;                                     // the first tokens of a text are unlike all others: everything attends to them

// Every decode() is one chunk from its beginning, so the first rows are those of the first positions.
class Listener : public RowObserver {
public:
    void keys_values(const WrittenRows& w) override {
        statistics.add_rows(w.layer, w.operand == Operand::key ? tightkv::Operand::K : tightkv::Operand::V, w.head_dim, w.n_kv_heads,
                            w.rows.subspan(static_cast<size_t>(kSkip * w.n_kv_heads * w.head_dim)));
    }
    void queries(const QueryRows& q) override {
        statistics.add_queries(q.layer, q.head_dim, q.n_heads, q.n_kv_heads,
                               q.rows.subspan(static_cast<size_t>(kSkip * q.n_heads * q.head_dim)));
        if (q.rope) statistics.set_rope(q.layer, *q.rope);
        else extensible = false;
    }

    Calibration statistics;
    bool        extensible = true;
};

// False: interrupted.
bool listen(const Model& model, const std::vector<std::vector<Token>>& chunks, int threads, Listener& listener, Progress& progress) {
    const int               n = static_cast<int>(chunks.front().size());
    Context                 context(model, {.name = "f16", .stock = true, .spec = {}},
                                    {.tokens = n, .batch = n, .outputs = 1, .threads = threads, .observer = &listener});
    std::vector<BatchToken> batch;
    for (const std::vector<Token>& chunk : chunks) {
        batch.clear();
        for (int i = 0; i < n; i++) batch.push_back({chunk[static_cast<size_t>(i)], i, 0, i == n - 1});
        context.clear();
        if (!context.decode(batch)) return false;
        progress.advance(n);
    }
    return true;
}

void set_norms(Profile& p, const std::string& path) {
    std::vector<int> blocks;
    for (const LayerProfile& l : p.layers) blocks.push_back(l.block);
    const std::vector<uint64_t> norms = norms_of(path, blocks);
    for (size_t i = 0; i < norms.size(); i++) p.layers[i].norm = norms[i];
}

// For people, in one line of any file name.
std::string described(const std::string& text_file, size_t tokens, int chunk, int64_t positions) {
    std::string name = std::filesystem::path(text_file).filename().string();
    std::replace_if(
        name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    return fmt::format("{}, {} tokens in chunks of {}, for positions up to {}, by tightkv {}", name, tokens, chunk, positions,
                       TIGHTKV_VERSION);
}

// What comes behind the calibration's own tokens: the probes, then what is held out. Empty without a budget.
std::vector<std::vector<Token>> budget_chunks(const CalibrateOptions& o, const std::vector<Token>& tokens, size_t used, Token bos,
                                              const std::string& text_file) {
    if (o.budget <= 0) return {};
    const size_t need = used + size_t{kBudgetChunk} * (kProbes + kHeldOut);
    if (tokens.size() < need)
        throw failure(
            fmt::format("text {} is too short: {} tokens, and calibration with a budget needs {}", text_file, tokens.size(), need));
    return cut_chunks({tokens.begin() + static_cast<ptrdiff_t>(used), tokens.end()}, kBudgetChunk, kProbes + kHeldOut, bos, text_file);
}

} // namespace

int run_calibrate(const CalibrateOptions& o) {
    const auto        start     = std::chrono::steady_clock::now();
    const std::string path      = model_path(o.model);
    const std::string text_file = o.text.empty() ? demo_text() : o.text;
    const std::string text      = read_text(text_file);
    int               threads   = thread_count(o.threads);
    OutputFile        out(o.output);
    start_engine({.adapter = {}, .need_adapter = false, .verbose = o.verbose});
    const Model model(o.expand ? unquantized_model(path, threads, say) : path);
    const int   trained = model.n_ctx_train(), chunk = std::min(kChunk, trained);
    if (o.target_ctx > trained)
        throw usage_error(
            fmt::format("--target-ctx {} is beyond what {} was trained for; accepted: up to {}", o.target_ctx, path, trained));
    if (o.threads == 0) threads = pick_threads(model, threads);
    const std::vector<Token> tokens = model.tokenize(text);
    const auto               chunks = cut_chunks(tokens, chunk, (o.tokens + chunk - 1) / chunk, model.bos(), text_file);
    const auto               spare  = budget_chunks(o, tokens, chunks.size() * static_cast<size_t>(chunk), model.bos(), text_file);

    int64_t  positions = std::max(o.target_ctx > 0 ? o.target_ctx : std::min(2048, trained), chunk);
    Listener listener;
    Profile  profile;
    {
        Progress progress(static_cast<double>(chunks.size()) * chunk);
        progress.stage("listening to the model");
        if (!listen(model, chunks, threads, listener, progress)) {
            say("interrupted; nothing was written");
            return kExitInterrupted;
        }
        progress.stage("solving");
        if (!listener.extensible && positions > chunk) {
            progress.clear();
            say(fmt::format("the position encoding of this model is of a kind that cannot be extended: calibrated for positions up to {}",
                            chunk));
            positions = chunk;
        }
        if (const Status s = listener.statistics.solve(positions - chunk + 1, profile); !s.ok())
            throw failure(fmt::format("{} cannot be calibrated on {}: {}", path, text_file, s.message()));
    }
    BudgetResult spent;
    if (o.budget > 0) {
        Progress   progress(budget_steps(profile, kProbes, kHeldOut));
        const auto all = std::span(spare);
        spent          = spend_budget(model, profile, o.budget, all.first(kProbes), all.subspan(kProbes), threads, progress);
        if (spent.interrupted) {
            progress.clear();
            say("interrupted; nothing was written");
            return kExitInterrupted;
        }
    }
    profile.architecture = architecture_of(path);
    profile.made_from    = described(text_file, chunks.size() * static_cast<size_t>(chunk), chunk, positions);
    set_norms(profile, path);
    const std::vector<uint8_t> bytes = profile.write();
    out.append({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    out.finish();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    print(profile_report(profile, bytes.size()) + (o.budget > 0 ? "\n" + budget_report(profile, spent) : std::string()) +
          fmt::format("written to {} in {:.1f} s\n", o.output, seconds.count()));
    return 0;
}

} // namespace tightkv::tool
