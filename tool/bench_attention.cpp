// tightkv bench attention: the attention operator against rivals on the same shapes, in alternating rounds of one process.
#include <algorithm>
#include <memory>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "attention_rounds.h"
#include "bench/bandwidth.h"
#include "bench/contender.h"
#include "bench/machine.h"
#include "bench/own_kernels.h"
#include "bench/rounds.h"
#include "bench_about.h"
#include "cache_choice.h"
#include "commands.h"
#include "disturbance.h"
#include "engine_llama_attention.h"
#include "errors.h"
#include "interrupt.h"
#include "number_list.h"
#include "output.h"
#include "progress.h"
#include "rival_process.h"
#include "text.h"

namespace tightkv::tool {

namespace {

using bench::Contender;

constexpr int kMostKeys = 1 << 22;

struct Plan {
    std::vector<const Format*> formats;
    std::vector<int>           depths;
    std::vector<std::string>   rivals;
    std::vector<RivalLibrary>  libraries;
};

Plan parse(const BenchAttentionOptions& o) {
    Plan                     p;
    std::vector<std::string> formats, rivals;
    for (const Format& f : all_formats()) formats.push_back(f.name);
    for (const std::string& name : parse_names(o.formats, "format", formats)) p.formats.push_back(find_format(name));
    if (!valid_head_dim(o.head_dim))
        throw usage_error(
            fmt::format("--head-dim {} is not supported; accepted: multiples of 32 from {} to {}", o.head_dim, kMinHeadDim, kMaxHeadDim));
    if (o.q_heads % o.kv_heads != 0)
        throw usage_error(fmt::format("--q-heads {} is not accepted; accepted: multiples of --kv-heads {}", o.q_heads, o.kv_heads));
    p.depths    = o.tokens == 1 ? parse_numbers(o.depths, "--depth", 1, kMostKeys, 1, ", and 0 with --tokens of 2 or more")
                                : parse_numbers(o.depths, "--depth", 0, kMostKeys);
    p.libraries = parse_rival_libraries(o.rivals, "libggml.so");

    for (const std::string_view t : kStockTypes) rivals.push_back(fmt::format("llama:{}", t));
    if (bench::own_kernels_available())
        for (const char* t : {"own:f16", "own:f32"}) rivals.push_back(t);
    for (const RivalLibrary& l : p.libraries)
        for (const std::string_view t : kStockTypes) rivals.push_back(fmt::format("{}:{}", l.name, t));
    const std::string usual = std::string("llama:f16,llama:q8_0,llama:q4_0") + (bench::own_kernels_available() ? ",own:f16" : "");
    if (o.against != "none") p.rivals = parse_names(o.against.empty() ? usual : o.against, "rival", rivals);
    return p;
}

std::unique_ptr<Contender> make_rival(const std::string& name, const Plan& p, const bench::AttentionData& data, double total,
                                      bench::ThreadTeam& team) {
    const size_t      colon = name.find(':');
    const std::string kind = name.substr(0, colon), type = name.substr(colon + 1);
    if (kind == "own") return bench::make_own(type, data, total, team);
    if (kind == "llama") return make_llama_attention("", name, type, data, total, team.size());
    for (const RivalLibrary& l : p.libraries)
        if (l.name == kind) return start_rival_process(l, type, data, total, team.size());
    throw failure("no rival " + name);
}

// Bytes of the operands that a side goes through: those asked for, or what exceeds the last cache four times; or what memory allows.
double cache_budget(const BenchAttentionOptions& o, size_t sides) {
    const double wanted = o.memory_mib > 0 ? o.memory_mib * 1048576.0 : 4.0 * static_cast<double>(bench::last_cache_bytes());
    const double memory = 0.5 * static_cast<double>(bench::available_memory()) / static_cast<double>(sides);
    return memory > 0 ? std::min(wanted, memory) : wanted;
}

// A layer of every side must fit beside what is reserved: the system would kill the program rather than refuse.
void check_memory(const Plan& plan, const bench::AttentionShape& shape, double reserved) {
    const double rival = bench::kv_bytes(shape, 2.0 * shape.head_dim); // f16, the largest
    const double free = static_cast<double>(bench::available_memory()), memory = free - reserved;
    double       need =
        rival * static_cast<double>(plan.rivals.size()) + 2.0 * (shape.n_tokens + 64) * static_cast<double>(shape.n_kv); // and the mask
    for (const Format* f : plan.formats) need += bench::kv_bytes(shape, static_cast<double>(f->row_bytes(shape.head_dim)));
    if (free > 0 && need > 0.9 * memory)
        throw failure(fmt::format(
            "{} keys need {:.1f} GiB for all sides together, and {:.1f} GiB are free; a smaller --depth or fewer formats and rivals "
            "need less",
            shape.n_kv, need / (1 << 30), memory / (1 << 30)));
}

// All sides of one depth, each with its cache filled and its results checked.
std::vector<Side> checked_sides(const Plan& plan, double total, const bench::AttentionData& data, bench::ThreadTeam& team,
                                Progress& progress) {
    std::vector<Side> sides;
    const auto        add = [&](std::unique_ptr<Contender> c) {
        const bench::Verdict v = c->check(data);
        if (!v.ok)
            throw failure(fmt::format("{} is wrong at {} keys: relative error {:.3g} against the fp64 oracle, allowed {:.3g} ({})", c->name,
                                             data.shape.n_kv, v.max_rel_error, v.bound, v.where));
        sides.push_back({std::move(c), v, {}});
        progress.advance(1);
    };
    for (const Format* f : plan.formats)
        if (!interrupted()) add(bench::make_tightkv(*f, data, total, team));
    for (const std::string& r : plan.rivals)
        if (!interrupted()) add(make_rival(r, plan, data, total, team));
    return sides;
}

std::vector<Column> columns(const Plan& plan) {
    std::vector<Column> c = {{"format", "format", ""},
                             {"depth", "depth", ""},
                             {"ns_per_token", "ns/token", "{:.1f}"},
                             {"spread", "spread", "{:.3f}"},
                             {"gb_per_s", "GB/s", "{:.2f}"},
                             {"bandwidth_fraction", "of bandwidth", "{:.3f}"},
                             {"max_rel_error", "max rel. error", "{:.2g}"}};
    for (const std::string& r : plan.rivals) c.push_back({"ratio." + r, "× " + r, "{:.2f}"});
    return c;
}

} // namespace

int run_bench_attention(const BenchAttentionOptions& o) {
    const TableFormat format = parse_table_format(o.format);
    const Plan        plan   = parse(o);
    choose_isa(o.isa);
    const auto shape_at = [&](int depth) {
        return bench::AttentionShape{o.head_dim, o.q_heads, o.kv_heads, o.tokens, o.tokens == 1 ? depth : depth + o.tokens};
    };
    // Bandwidth is memory's, so where less was asked for than leaves the caches behind it is not measured.
    const bool   from_memory = o.memory_mib == 0 || o.memory_mib * 1048576.0 >= 4.0 * static_cast<double>(bench::last_cache_bytes());
    const size_t buffer      = from_memory ? static_cast<size_t>(cache_budget(o, 2)) : 0;
    for (const int depth : plan.depths) check_memory(plan, shape_at(depth), static_cast<double>(buffer)); // before anything takes time
    OutputFile                          out(o.output);
    bench::ThreadTeam                   team(o.threads);
    std::optional<bench::ReadBandwidth> bandwidth;
    if (from_memory) bandwidth.emplace(buffer, team);
    std::vector<Json>   rows;
    std::vector<double> read; // GB/s, of all rounds
    {
        const double sides = static_cast<double>(plan.formats.size() + plan.rivals.size());
        Progress     progress(static_cast<double>(plan.depths.size()) * sides * (o.rounds + 1));
        for (const int depth : plan.depths) {
            if (interrupted()) break;
            progress.stage(fmt::format("depth {}", depth));
            const bench::AttentionShape shape = shape_at(depth);
            const bench::AttentionData  data(shape);
            const double                each = cache_budget(o, plan.formats.size() + plan.rivals.size() + 1);
            std::vector<Side>           all  = checked_sides(plan, each, data, team, progress);
            const std::vector<double>   here = time_rounds(all, o.rounds, bandwidth ? &*bandwidth : nullptr, progress);
            if (all.empty() || all.front().seconds.empty()) break; // interrupted
            read.insert(read.end(), here.begin(), here.end());
            for (const Side& s : all)
                if (s.contender->ours) rows.push_back(row_of(s, all, shape, o.threads, here.empty() ? 0 : bench::median(here)));
        }
    }
    Json about                    = bench_about();
    about["threads"]              = o.threads;
    about["rounds"]               = o.rounds;
    about["bandwidth_gb_per_s"]   = read.empty() ? Json() : Json(bench::median(read));
    about["bandwidth_buffer_mib"] = static_cast<double>(buffer) / (1 << 20);
    about["huge_pages"]           = all_huge(rows);
    if (interrupted()) about["interrupted"] = true;
    out.write(write_table(format, columns(plan), rows, about));
    if ((format == TableFormat::md || format == TableFormat::csv) && !rows.empty())
        say(fmt::format("{}, {}, ggml {}, read bandwidth {} with {} thread{}, huge pages: {}", about["cpu"].get<std::string>(),
                        about["compiler"].get<std::string>(), about["host_version"].get<std::string>(),
                        read.empty() ? "not measured" : fmt::format("{:.1f} GB/s", bench::median(read)), o.threads,
                        o.threads == 1 ? "" : "s", about["huge_pages"].get<bool>() ? "on all sides" : "not everywhere"));
    if (const std::string why = disturbance(rows); !why.empty()) say(why);
    if (interrupted()) say("interrupted; the figures are of what was measured so far");
    return interrupted() ? kExitInterrupted : 0;
}

} // namespace tightkv::tool
