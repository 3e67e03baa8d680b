// Counters and messages.
#include "ggml/stats.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "ggml.h"

namespace tightkv {

AdapterStats& stats() {
    static AdapterStats* s = new AdapterStats; // outlives every static destructor: the exit report reads it
    return *s;
}

std::string stats_json() {
    const AdapterStats& s     = stats();
    std::string         json  = "{";
    const auto          field = [&](const char* name, const std::atomic<int64_t>& v) {
        json += std::string("\"") + name + "\": " + std::to_string(v.load()) + ", ";
    };
    field("graphs", s.graphs);
    field("native_writes", s.native_writes);
    field("native_attention", s.native_attention);
    field("generic_ops", s.generic_ops);
    field("fallback_ops", s.fallback_ops);
    field("v_tiles", s.v_tiles);
    field("v_tiles_skipped", s.v_tiles_skipped);
    field("v_tiles_twice", s.v_tiles_twice);
    field("rows_read", s.rows_read);
    field("rows_written", s.rows_written);
    field("refused_rows", s.refused_rows);
    field("saturated_rows", s.saturated_rows);
    field("means_measured", s.means_measured);
    field("self_profiles", s.self_profiles);
    field("cache_bytes", s.cache_bytes);
    field("peak_cache_bytes", s.peak_cache_bytes);
    return json + "\"host_version\": \"" + ggml_version() + "\"}";
}

void say(const std::string& line) { std::fprintf(stderr, "tightkv: %s\n", line.c_str()); }

void inform(const std::string& line) {
    static const bool quiet = [] {
        const char* v = std::getenv("TIGHTKV_QUIET");
        return v && std::strcmp(v, "1") == 0;
    }();
    if (!quiet) say(line);
}

void say_once(const std::string& line, const std::string& about) {
    static std::mutex            lock;
    static std::set<std::string> said;
    const std::lock_guard        guard(lock);
    if (said.insert(about.empty() ? line : about).second) say(line);
}

} // namespace tightkv
