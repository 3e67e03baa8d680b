// tightkv demo: what the compressed cache does to a small model: memory, quality, speed.
#include <fmt/format.h>

#include "bench/machine.h"
#include "calibration.h"
#include "commands.h"
#include "cpu/kernel_table.h"
#include "demo_footnote.h"
#include "demo_report.h"
#include "errors.h"
#include "install_paths.h"
#include "interrupt.h"
#include "model_file.h"
#include "output.h"
#include "quality.h"
#include "speed.h"

namespace tightkv::tool {

namespace {

constexpr int          kCtx = 512, kChunks = 4;
constexpr int          kDecodeFrom = 256; // the unscored half of a chunk goes in as a batch: a demonstration must be short
constexpr const char*  kCaches     = "f16,q8_0,q4_0,turbo4,turbo3,turbo2,auto";
const std::vector<int> kDepths     = {0, 2048, 8192};

// The default with a profile of this model in place of a mean alone.
CacheChoice profiled(const std::string& file) {
    CacheChoice c  = parse_cache("auto");
    c.name         = "auto+profile";
    c.spec.profile = file;
    return c;
}

} // namespace

int run_demo(const DemoOptions& o) {
    int                      threads   = thread_count(o.threads);
    const std::string        path      = model_path(o.model);
    const std::string        text_file = o.text.empty() ? demo_text() : o.text;
    const std::string        text      = read_text(text_file);
    std::vector<CacheChoice> caches    = parse_cache_list(kCaches);
    OutputFile               out(o.output);
    start_engine({.adapter = o.adapter, .need_adapter = true, .verbose = o.verbose});

    DemoFigures figures;
    Json        about;
    {
        const Model exact(unquantized_model(path, threads, say));
        const Model quick(path);
        if (o.threads == 0) threads = pick_threads(exact, threads);
        std::vector<Token> tokens  = exact.tokenize(text);
        const std::string  profile = profile_in_cache(exact, path, threads);
        if (!profile.empty()) caches.push_back(profiled(profile));
        figures.caches = caches;
        QualityPlan quality;
        quality.candidates  = caches;
        quality.paths       = {"batched", "decode"};
        quality.chunks      = cut_chunks(tokens, kCtx, kChunks, exact.bos(), text_file);
        quality.threads     = threads;
        quality.decode_from = kDecodeFrom;
        if (kCtx > exact.n_ctx_train())
            throw usage_error(fmt::format("{} was trained for {} tokens; the demonstration needs {}", path, exact.n_ctx_train(), kCtx));
        const SpeedPlan speed{.caches = caches, .depths = kDepths, .tokens = std::move(tokens), .threads = threads};

        const double quality_work = quality_units(quality);
        const double speed_scale  = exact.path() == path ? 1.0 : 0.5; // quantised weights: a token costs less there
        Progress     progress(quality_work + speed_scale * speed_units(speed));
        figures.quality = measure_quality(exact, quality, progress);
        if (!interrupted()) figures.speed = measure_speed(quick, speed, progress, speed_scale);
        figures.depths = kDepths;
        about          = {{"model", path},
                          {"weights", exact.path()},
                          {"text", text_file},
                          {"profile", profile},
                          {"ctx", kCtx},
                          {"chunks", kChunks},
                          {"decode_from", kDecodeFrom},
                          {"threads", threads},
                          {"cpu", bench::cpu_model()},
                          {"isa", kernels().name},
                          {"rounds", speed.rounds},
                          {"host_version", host_version()},
                          {"adapter_active", figures.quality.adapter_active}};
    }
    if (interrupted()) about["interrupted"] = true;
    const std::string sentence = demo_sentence(figures);
    const Json        document = demo_document(figures, about, sentence);
    out.write(to_json(document));
    std::string shown = to_markdown(demo_columns(figures), demo_rows(figures)) + "\n" + demo_footnote(document) + "\n";
    if (!sentence.empty()) shown += "\n" + sentence + "\n";
    print(shown);
    say("saved as " + o.output);
    if (interrupted()) say("interrupted; the figures are of what was measured so far");
    return interrupted() ? kExitInterrupted : 0;
}

} // namespace tightkv::tool
