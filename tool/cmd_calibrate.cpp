// tightkv calibrate: what the keys, values and queries of a text teach about a model.
#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "budget.h"
#include "calibration.h"
#include "commands.h"
#include "engine_llama.h"
#include "errors.h"
#include "install_paths.h"
#include "interrupt.h"
#include "model_file.h"
#include "output.h"
#include "profile_report.h"
#include "progress.h"

namespace tightkv::tool {

namespace {

constexpr int kBudgetChunk = 256, kProbes = 6, kHeldOut = 10; // for --budget: chunks that units are measured on, and those it is judged on
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
    const std::string text_file = o.text.empty() ? calibration_text() : o.text;
    const std::string text      = read_text(text_file);
    int               threads   = thread_count(o.threads);
    OutputFile        out(o.output);
    start_engine({.adapter = {}, .need_adapter = false, .verbose = o.verbose});
    const Model model(o.expand ? unquantized_model(path, threads, say) : path);
    const int   trained = model.n_ctx_train(), chunk = std::min(kCalibrationChunk, trained);
    if (o.target_ctx > trained)
        throw usage_error(
            fmt::format("--target-ctx {} is beyond what {} was trained for; accepted: up to {}", o.target_ctx, path, trained));
    if (o.threads == 0) threads = pick_threads(model, threads);
    const std::vector<Token> tokens = model.tokenize(text);
    const auto               chunks = cut_chunks(tokens, chunk, (o.tokens + chunk - 1) / chunk, model.bos(), text_file);
    const auto               spare  = budget_chunks(o, tokens, chunks.size() * static_cast<size_t>(chunk), model.bos(), text_file);

    const int64_t positions = std::max(o.target_ctx > 0 ? o.target_ctx : std::min(2048, trained), chunk);
    if (o.target_ctx > 0 && o.target_ctx < chunk)
        say(fmt::format("--target-ctx {}: calibrated for {} positions, the length of a chunk", o.target_ctx, chunk));
    Profile profile;
    {
        Progress progress(static_cast<double>(chunks.size()) * chunk);
        if (!calibrate(model, {path, text_file, text_checksum(text), chunks, positions, threads}, progress, profile)) {
            say("interrupted; nothing was written");
            return kExitInterrupted;
        }
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
    const std::vector<uint8_t> bytes = profile.write();
    out.append({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    out.finish();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    print(profile_report(profile, bytes.size()) + (o.budget > 0 ? "\n" + budget_report(profile, spent) : std::string()) +
          fmt::format("written to {} in {:.1f} s\n", o.output, seconds.count()));
    return 0;
}

} // namespace tightkv::tool
