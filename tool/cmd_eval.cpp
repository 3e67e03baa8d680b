// tightkv eval: quality of caches against the f16 cache of the same model.
#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "commands.h"
#include "errors.h"
#include "install_paths.h"
#include "model_file.h"
#include "output.h"
#include "quality.h"

namespace tightkv::tool {

int run_eval(const EvalOptions& o) {
    const TableFormat format = parse_table_format(o.format);
    QualityPlan       plan;
    plan.candidates = parse_cache_list(o.caches, LabCaches::accepted);
    plan.paths      = parse_paths(o.paths);
    plan.threads    = thread_count(o.threads);
    const bool ours = std::any_of(plan.candidates.begin(), plan.candidates.end(), [](const CacheChoice& c) { return !c.stock; });

    const std::string path      = model_path(o.model);
    const std::string text_file = o.text.empty() ? demo_text() : o.text;
    const std::string text      = read_text(text_file);
    OutputFile        out(o.output);
    start_engine({.adapter = o.adapter, .need_adapter = ours, .verbose = o.verbose});
    for (const CacheChoice& c : plan.candidates) require_profile(path, c); // before minutes and gigabytes of expansion
    const Model model(o.expand ? unquantized_model(path, plan.threads, say) : path);
    if (o.ctx > model.n_ctx_train())
        throw usage_error(fmt::format("--ctx {} is beyond what {} was trained for; accepted: 8 to {}", o.ctx, path, model.n_ctx_train()));
    if (o.threads == 0) plan.threads = pick_threads(model, plan.threads);
    plan.chunks = cut_chunks(model.tokenize(text), o.ctx, o.chunks, model.bos(), text_file);

    const bool in_lab = std::any_of(plan.candidates.begin(), plan.candidates.end(), [](const CacheChoice& c) { return !c.lab.empty(); });
    std::optional<LabFits> lab;
    if (in_lab) plan.lab = &lab.emplace(model, plan.candidates, calibration_text(), text_file, o.ctx, plan.threads);

    QualityResult result;
    {
        Progress progress(quality_units(plan));
        result = measure_quality(model, plan, progress);
    }
    Json about = {{"model", path},
                  {"weights", model.path()},
                  {"text", text_file},
                  {"ctx", o.ctx},
                  {"cells", result.cells},
                  {"chunks", o.chunks},
                  {"threads", plan.threads},
                  {"host_version", host_version()},
                  {"adapter_active", result.adapter_active}};
    if (lab && lab->fitted_on_text()) about["lab_text"] = calibration_text();
    if (result.interrupted) about["interrupted"] = true;
    std::vector<Json> rows;
    for (const QualityRow& r : result.rows) rows.push_back(to_row(r));
    out.write(write_table(format, quality_columns(), rows, about));
    if (format == TableFormat::md || format == TableFormat::csv) {
        say(fmt::format("{} ({}), text {}, {} chunk{} of {} tokens, ggml {}", path, model.path() == path ? "as it is" : "expanded to F32",
                        text_file, o.chunks, o.chunks == 1 ? "" : "s", o.ctx, host_version()));
        if (result.cells > o.ctx)
            say(fmt::format("bits/value and bytes are of {} cells: llama.cpp rounds --ctx {} up to a multiple of 256", result.cells,
                            o.ctx));
    }
    if (result.interrupted)
        say(rows.empty() ? "interrupted before anything was measured" : "interrupted; the figures are of what was measured so far");
    return result.interrupted ? kExitInterrupted : 0;
}

} // namespace tightkv::tool
