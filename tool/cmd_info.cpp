// tightkv info: what there is and whether it works here.
#include <charconv>

#include <fmt/format.h>

#include "cache/read_path.h"
#include "cache_listing.h"
#include "codec/format.h"
#include "commands.h"
#include "cpu/kernel_table.h"
#include "engine_llama.h"
#include "errors.h"
#include "install_paths.h"
#include "output.h"
#include "profile_report.h"
#include "selftest.h"
#include "table.h"
#include "text.h"

#include <unistd.h>

namespace tightkv::tool {

namespace {

std::vector<int> parse_head_dims(const std::string& list) {
    std::vector<int> dims;
    for (const std::string& item : split_list(list)) {
        int d                = 0;
        const auto [end, ec] = std::from_chars(item.data(), item.data() + item.size(), d);
        if (ec != std::errc{} || end != item.data() + item.size() || !valid_head_dim(d))
            throw usage_error(
                fmt::format("head_dim '{}' is not supported; accepted: multiples of 32 from {} to {}", item, kMinHeadDim, kMaxHeadDim));
        dims.push_back(d);
    }
    return dims;
}

std::vector<Json> format_rows(const std::vector<int>& dims) {
    std::vector<Json> rows;
    for (const Format& f : all_formats())
        for (const int d : dims)
            rows.push_back({{"format", f.name},
                            {"bits", f.bits},
                            {"head_dim", d},
                            {"row_bytes", f.row_bytes(d)},
                            {"bits_per_value", f.bits_per_value(d)},
                            {"of_f16", f.bits_per_value(d) / 16},
                            {"work_bytes_per_thread", AttentionJob::work_bytes(d, d)}});
    return rows;
}

Json host_report(const std::string& adapter) {
    const std::string file = adapter.empty() ? adapter_file() : adapter;
    start_engine({.adapter = adapter, .need_adapter = false, .verbose = false});
    return {{"host_version", host_version()},
            {"adapter", file},
            {"adapter_found", ::access(file.c_str(), R_OK) == 0},
            {"adapter_active", adapter_loaded()},
            {"adapter_version", adapter_loaded() ? Json(adapter_version()) : Json()},
            {"handshake", adapter_handshake()}};
}

// The cache folder and what is in it; null where no variable says which folder that is.
Json cache_report() {
    std::string folder;
    try {
        folder = cache_folder();
    } catch (const Failure&) {
        return nullptr;
    }
    Json entries = Json::array();
    for (const CacheEntry& e : list_cache(folder)) entries.push_back({{"name", e.name}, {"bytes", e.bytes}, {"what", e.what}});
    return {{"folder", folder}, {"entries", entries}};
}

std::string size_text(uint64_t bytes) {
    return bytes < 1 << 16 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string cache_text(const Json& cache) {
    if (cache.is_null()) return "cache folder: none (neither HOME nor TIGHTKV_CACHE is set)\n";
    const std::string folder = cache["folder"];
    if (cache["entries"].empty()) return fmt::format("cache folder: {} (nothing in it)\n", folder);
    uint64_t          all = 0;
    std::vector<Json> rows;
    for (const Json& e : cache["entries"]) {
        const uint64_t bytes = e["bytes"];
        all += bytes;
        rows.push_back({{"name", e["name"]}, {"size", size_text(bytes)}, {"what", e["what"]}});
    }
    return fmt::format("cache folder: {} ({}; all of it may be deleted and is made again when needed)\n\n", folder, size_text(all)) +
           to_markdown({{"name", "in it", ""}, {"size", "size", ""}, {"what", "what it is", ""}}, rows);
}

} // namespace

int run_info(const InfoOptions& o) {
    if (o.format != "md" && o.format != "json") throw usage_error(fmt::format("unknown output format '{}'; accepted: md, json", o.format));
    if (!o.profile.empty()) {
        Profile p;
        if (const Status s = Profile::load(o.profile, p); !s.ok()) throw failure(s.message());
        const size_t bytes = p.write().size();
        print(o.format == "json" ? to_json(profile_json(p, bytes)) : profile_report(p, bytes));
        return 0;
    }
    const std::vector<int>  dims    = parse_head_dims(o.head_dims);
    const std::vector<Json> formats = format_rows(dims);
    Json                    levels  = Json::array();
    for (const KernelTable* k : available_kernels()) levels.push_back(k->name);
    const std::string       chosen = kernels().name;
    const Json              host   = host_report(o.adapter);
    const std::vector<Json> tests  = o.selftest ? selftest(dims) : std::vector<Json>();
    const bool              good   = all_ok(tests);
    const Json              cache  = cache_report();

    if (o.format == "json") {
        Json document = {{"version", TIGHTKV_VERSION},
                         {"format_version", kFormatVersion},
                         {"formats", formats},
                         {"isa_levels", levels},
                         {"isa", chosen},
                         {"host", host},
                         {"cache", cache}};
        if (o.selftest) document["selftest"] = {{"ok", good}, {"tests", tests}};
        print(to_json(document));
        return good ? 0 : kExitFailure;
    }
    std::string names;
    for (const Json& l : levels) names += (names.empty() ? "" : ", ") + l.get<std::string>();
    std::string text = fmt::format("tightkv {}, format version {}\n\n", TIGHTKV_VERSION, kFormatVersion);
    text += to_markdown({{"format", "format", ""},
                         {"bits", "bits", ""},
                         {"head_dim", "head_dim", ""},
                         {"row_bytes", "bytes per row", ""},
                         {"bits_per_value", "bits/value", "{:.3f}"},
                         {"of_f16", "of f16", "{:.3f}"},
                         {"work_bytes_per_thread", "work space per thread, bytes", ""}},
                        formats);
    text += fmt::format("\nkernels: {} (chosen of: {})\nllama.cpp: ggml {}\nadapter: {}{}\nhandshake: {}\n", chosen, names,
                        host["host_version"].get<std::string>(), host["adapter"].get<std::string>(),
                        adapter_loaded() ? ", version " + adapter_version() : std::string(), host["handshake"].get<std::string>());
    if (const std::string complaint = isa_complaint(); !complaint.empty()) text += complaint + "\n";
    text += "\n" + cache_text(cache);
    if (o.selftest)
        text += "\n" +
                to_markdown({{"isa", "kernels", ""},
                             {"format", "format", ""},
                             {"head_dim", "head_dim", ""},
                             {"relative_error", "relative error", "{:.5f}"},
                             {"result", "result", ""}},
                            tests) +
                fmt::format("\nself-test: {}\n", good ? "ok" : "FAILED");
    print(text);
    return good ? 0 : kExitFailure;
}

} // namespace tightkv::tool
