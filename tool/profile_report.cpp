#include "profile_report.h"

#include <algorithm>

#include <fmt/format.h>

namespace tightkv::tool {

namespace {

Json layer_json(const LayerProfile& l) {
    const auto format_name = [](const std::optional<FormatId>& f) { return f ? Json(format(*f).name) : Json(nullptr); };
    const auto count       = [](const std::vector<HeadProfile>& heads, auto has) { return std::count_if(heads.begin(), heads.end(), has); };
    const auto mean        = [](const HeadProfile& h) { return !h.mean.empty(); };
    const auto matrix      = [](const HeadProfile& h) { return !h.matrix.empty(); };
    return {{"block", l.block},
            {"n_kv_heads", l.k.size()},
            {"head_dim_k", l.head_dim_k},
            {"head_dim_v", l.head_dim_v},
            {"k_format", format_name(l.k_format)},
            {"v_format", format_name(l.v_format)},
            {"k_means", count(l.k, mean)},
            {"k_matrices", count(l.k, matrix)},
            {"v_means", count(l.v, mean)},
            {"v_matrices", count(l.v, matrix)}};
}

bool same_shape(const LayerProfile& a, const LayerProfile& b) {
    return a.head_dim_k == b.head_dim_k && a.head_dim_v == b.head_dim_v && a.k.size() == b.k.size();
}

} // namespace

std::string profile_report(const Profile& p, size_t bytes) {
    std::string text  = fmt::format("profile version {}, {:.2f} MiB\nmade from: {}\nmodel: {}, fingerprint {}\n", kProfileVersion,
                                    static_cast<double>(bytes) / 1048576.0, p.made_from, p.architecture, p.fingerprint());
    const auto& front = p.layers.front();
    const bool  plain = std::all_of(p.layers.begin(), p.layers.end(),
                                    [&](const LayerProfile& l) { return same_shape(l, front) && !l.k_format && !l.v_format; });
    if (plain)
        return text + fmt::format("layers: {}, each of {} KV heads of head_dim {}/{}\n", p.layers.size(), front.k.size(), front.head_dim_k,
                                  front.head_dim_v);
    std::vector<Json> rows;
    for (const LayerProfile& l : p.layers) rows.push_back(layer_json(l));
    return text + "\n" +
           to_markdown({{"block", "block", ""},
                        {"n_kv_heads", "KV heads", ""},
                        {"head_dim_k", "head_dim of K", ""},
                        {"head_dim_v", "of V", ""},
                        {"k_format", "format of K", ""},
                        {"v_format", "of V", ""}},
                       rows);
}

Json profile_json(const Profile& p, size_t bytes) {
    Json layers = Json::array();
    for (const LayerProfile& l : p.layers) layers.push_back(layer_json(l));
    return {{"profile_version", kProfileVersion}, {"bytes", bytes},  {"made_from", p.made_from}, {"architecture", p.architecture},
            {"fingerprint", p.fingerprint()},     {"layers", layers}};
}

} // namespace tightkv::tool
