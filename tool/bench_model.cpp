// tightkv bench model: prefill and decode speed of whole models on top of filled caches.
#include <algorithm>

#include <fmt/format.h>

#include "bench_about.h"
#include "commands.h"
#include "cpu/kernel_table.h"
#include "errors.h"
#include "install_paths.h"
#include "interrupt.h"
#include "model_file.h"
#include "number_list.h"
#include "output.h"
#include "speed.h"
#include "text.h"

namespace tightkv::tool {

namespace {

const std::vector<Column> kColumns = {{"cache", "cache", ""},
                                      {"bits_per_value", "bits/value", "{:.2f}"},
                                      {"depth", "depth", ""},
                                      {"prefill_tps", "prefill t/s", "{:.1f}"},
                                      {"prefill_spread", "spread", "{:.3f}"},
                                      {"decode_tps", "decode t/s", "{:.1f}"},
                                      {"decode_spread", "spread", "{:.3f}"},
                                      {"decode_ratio", "decode/first", "{:.3f}"},
                                      {"decode_ratio_low", "95 % from", "{:.3f}"},
                                      {"decode_ratio_high", "to", "{:.3f}"}};

std::vector<Json> rows_of(const std::vector<SpeedRow>& caches, const std::vector<int>& depths) {
    std::vector<Json> rows;
    for (size_t i = 0; i < depths.size(); i++)
        for (const SpeedRow& c : caches) {
            if (i >= c.decode.size() || i >= c.prefill.size()) continue; // interrupted
            const Rate &prefill = c.prefill[i], &decode = c.decode[i];
            rows.push_back({{"cache", c.cache},
                            {"depth", depths[i]},
                            {"prefill_tps", prefill.median},
                            {"prefill_spread", prefill.spread},
                            {"prefill_ratio", prefill.to_first.median},
                            {"prefill_ratio_low", prefill.to_first.low},
                            {"prefill_ratio_high", prefill.to_first.high},
                            {"decode_tps", decode.median},
                            {"decode_spread", decode.spread},
                            {"decode_ratio", decode.to_first.median},
                            {"decode_ratio_low", decode.to_first.low},
                            {"decode_ratio_high", decode.to_first.high},
                            {"bits_per_value", c.bits_per_value},
                            {"cache_bytes", c.cache_bytes},
                            {"cells", c.cells}});
        }
    return rows;
}

// --cache: what begins with the name of a library of --rival is a cache of that one, the rest is ours or llama.cpp's.
void parse_caches(const BenchModelOptions& o, SpeedPlan& plan) {
    const std::vector<RivalLibrary> libraries = parse_rival_libraries(o.rivals, "libllama.so");
    std::string                     rest;
    for (const std::string& item : split_list(o.caches)) {
        const auto at = std::find_if(libraries.begin(), libraries.end(), [&](const auto& l) { return item.starts_with(l.name + ":"); });
        if (at == libraries.end()) {
            rest += (rest.empty() ? "" : ",") + item;
            continue;
        }
        std::vector<std::string> accepted;
        for (const std::string_view t : kStockTypes) accepted.push_back(fmt::format("{}:{}", at->name, t));
        plan.rivals.push_back({*at, parse_names(item, "cache", accepted).front().substr(at->name.size() + 1)});
    }
    if (rest.empty() && !plan.rivals.empty())
        throw usage_error("--cache has rivals alone; accepted beside them: at least one cache of llama.cpp or ours");
    plan.caches = parse_cache_list(rest);
    for (const RivalLibrary& l : libraries)
        if (std::none_of(plan.rivals.begin(), plan.rivals.end(), [&](const RivalCache& c) { return c.library.name == l.name; }))
            throw usage_error(fmt::format("--rival '{0}' has nothing to do; accepted in --cache: {0}:TYPE, for example {0}:q8_0", l.name));
}

} // namespace

int run_bench_model(const BenchModelOptions& o) {
    const TableFormat format = parse_table_format(o.format);
    SpeedPlan         plan;
    parse_caches(o, plan);
    plan.depths = parse_numbers(o.depths, "--depth", 0, kMostDepth, kDepthBlock);
    std::sort(plan.depths.begin(), plan.depths.end()); // each is filled on top of the one before
    plan.threads = thread_count(o.threads), plan.rounds = o.rounds;
    plan.prefill_tokens = o.prefill_tokens, plan.decode_tokens = o.decode_tokens;
    const bool ours = std::any_of(plan.caches.begin(), plan.caches.end(), [](const CacheChoice& c) { return !c.stock; });

    const std::string path = model_path(o.model);
    const std::string text = read_text(demo_text());
    OutputFile        out(o.output);
    start_engine({.adapter = o.adapter, .need_adapter = ours, .verbose = o.verbose});
    const Model model(path);
    if (o.threads == 0) plan.threads = pick_threads(model, plan.threads);
    plan.tokens = model.tokenize(text);
    std::vector<SpeedRow> speed;
    {
        Progress progress(speed_units(plan));
        speed = measure_speed(model, plan, progress, 1.0);
    }
    Json about              = bench_about();
    about["model"]          = path;
    about["description"]    = model.description();
    about["isa"]            = kernels().name;
    about["threads"]        = plan.threads;
    about["rounds"]         = o.rounds;
    about["prefill_tokens"] = o.prefill_tokens;
    about["decode_tokens"]  = o.decode_tokens;
    if (interrupted()) about["interrupted"] = true;
    out.write(write_table(format, kColumns, rows_of(speed, plan.depths), about));
    if (interrupted()) say("interrupted; the figures are of what was measured so far");
    return interrupted() ? kExitInterrupted : 0;
}

} // namespace tightkv::tool
