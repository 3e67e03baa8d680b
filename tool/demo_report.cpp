#include "demo_report.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "demo_footnote.h"

namespace tightkv::tool {

namespace {

const QualityRow* find_quality(const DemoFigures& f, const std::string& cache, const std::string& path) {
    const auto it =
        std::find_if(f.quality.rows.begin(), f.quality.rows.end(), [&](const QualityRow& r) { return r.cache == cache && r.path == path; });
    return it == f.quality.rows.end() ? nullptr : &*it;
}

double mib(const SpeedRow& s) { return static_cast<double>(s.cache_bytes) / s.cells * kDemoMemoryTokens / (1 << 20); }

std::string depth_key(int depth) { return fmt::format("tps_{}", depth); }

const Json* find_row(const std::vector<Json>& rows, const std::string& cache) {
    const auto it = std::find_if(rows.begin(), rows.end(), [&](const Json& r) { return r["cache"] == cache; });
    return it == rows.end() ? nullptr : &*it;
}

} // namespace

std::vector<Json> demo_rows(const DemoFigures& f) {
    std::vector<Json> rows;
    for (size_t k = 0; k < f.caches.size(); k++) {
        const std::string& name = f.caches[k].name;
        Json               row  = {{"cache", name}};
        for (const std::string_view path : kPaths)
            if (const QualityRow* q = find_quality(f, name, std::string(path))) {
                const std::string suffix = "_" + std::string(path);
                row["bits_per_value"]    = q->bits_per_value;
                row["dppl" + suffix]     = q->dppl;
                row["kld" + suffix]      = q->summary.kld;
                row["kld_se" + suffix]   = q->summary.kld_se;
                row["top1" + suffix]     = q->summary.top1;
            }
        if (k < f.speed.size()) {
            row["cache_mib_8k"] = mib(f.speed[k]);
            for (size_t i = 0; i < f.speed[k].decode.size(); i++) {
                row[depth_key(f.depths[i])]             = f.speed[k].decode[i].median;
                row[depth_key(f.depths[i]) + "_spread"] = f.speed[k].decode[i].spread;
            }
        }
        rows.push_back(std::move(row));
    }
    return rows;
}

std::vector<Column> demo_columns(const DemoFigures& f) {
    std::vector<Column> columns = {{"cache", "cache", ""},
                                   {"bits_per_value", "bits/value", "{:.2f}"},
                                   {"cache_mib_8k", "MiB at 8K", "{:.1f}"},
                                   {"kld_batched", "KLD batched", "{:.4f}"},
                                   {"kld_se_batched", "±", "{:.4f}"},
                                   {"kld_decode", "KLD decode", "{:.4f}"},
                                   {"kld_se_decode", "±", "{:.4f}"},
                                   {"dppl_decode", "ΔPPL", "{:+.3f}"},
                                   {"top1_decode", "same top-1", "{:.3f}"}};
    for (const int depth : f.depths) columns.push_back({depth_key(depth), "t/s at " + depth_name(depth), "{:.1f}"});
    return columns;
}

std::string demo_sentence(const DemoFigures& f) {
    const std::vector<Json> rows = demo_rows(f);
    const Json *            f16 = find_row(rows, "f16"), *q4 = find_row(rows, "q4_0"), *turbo = find_row(rows, "turbo4"),
               *small = find_row(rows, "turbo3");
    if (f.depths.empty()) return {};
    const std::string deep = depth_key(f.depths.back());
    for (const Json* row : {f16, q4, turbo, small})
        if (!row || !row->contains(deep) || !row->contains("top1_decode")) return {};
    const auto number = [](const Json& row, const std::string& key) { return row[key].get<double>(); };
    const auto ratio  = [&](const Json& a, const Json& b, const std::string& key) { return number(a, key) / number(b, key); };
    return fmt::format(
        "With turbo4 the cache of {} tokens shrinks from {:.0f} to {:.0f} MiB ({:.1f} times smaller; turbo3: {:.1f} times), the model's "
        "first choice "
        "of the next token stays the same in {:.0f} % of cases (turbo3: {:.0f} %; llama.cpp's own q4_0: {:.0f} %), and at {} tokens "
        "this machine decodes {:.0f} tokens/s instead of {:.0f} with f16 and {:.0f} with q4_0.",
        kDemoMemoryTokens, number(*f16, "cache_mib_8k"), number(*turbo, "cache_mib_8k"), ratio(*f16, *turbo, "cache_mib_8k"),
        ratio(*f16, *small, "cache_mib_8k"), 100 * number(*turbo, "top1_decode"), 100 * number(*small, "top1_decode"),
        100 * number(*q4, "top1_decode"), f.depths.back(), number(*turbo, deep), number(*f16, deep), number(*q4, deep));
}

Json demo_document(const DemoFigures& f, const Json& about, const std::string& sentence) {
    Json document = about;
    Json results = Json::array(), speed = Json::array();
    for (const QualityRow& r : f.quality.rows) results.push_back(to_row(r));
    for (const SpeedRow& r : f.speed)
        for (size_t i = 0; i < r.decode.size(); i++)
            speed.push_back(
                {{"cache", r.cache}, {"depth", f.depths[i]}, {"tokens_per_second", r.decode[i].median}, {"spread", r.decode[i].spread}});
    document["results"]  = std::move(results);
    document["speed"]    = std::move(speed);
    document["table"]    = demo_rows(f);
    document["sentence"] = sentence;
    return document;
}

} // namespace tightkv::tool
