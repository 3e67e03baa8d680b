#include "cache_choice.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "errors.h"
#include "lab/methods/method.h"
#include "text.h"

namespace tightkv::tool {

namespace {

constexpr std::string_view kLab = "lab:";

CacheChoice parse_lab_cache(std::string_view name, LabCaches lab) {
    if (lab == LabCaches::refused)
        throw usage_error(fmt::format("cache '{}': methods of the lab are accepted by `tightkv eval` only", name));
    CacheChoice c{.name = std::string(name), .lab = std::string(name.substr(kLab.size()))};
    if (!lab::make_method(c.lab))
        throw usage_error(
            fmt::format("cache '{}': no such method in the lab; accepted after lab: {}", name, fmt::join(lab::method_names(), ", ")));
    return c;
}

} // namespace

bool is_stock_type(std::string_view name) {
    return std::find(std::begin(kStockTypes), std::end(kStockTypes), name) != std::end(kStockTypes);
}

CacheChoice parse_cache(std::string_view name, LabCaches lab) {
    if (name.starts_with(kLab)) return parse_lab_cache(name, lab);
    CacheChoice c{.name = std::string(name)};
    if (is_stock_type(name)) return c;
    c.stock = false;
    if (const Status s = parse_cache_spec(name, c.spec); !s.ok())
        throw usage_error(fmt::format("cache '{}': {}; types of llama.cpp itself: {}", name, s.message(), fmt::join(kStockTypes, ", ")));
    if (c.spec.k == FormatId::f16 && c.spec.v == FormatId::f16 && !c.spec.n_first && !c.spec.n_last) c.stock = true, c.name = "f16";
    return c;
}

std::vector<CacheChoice> parse_cache_list(std::string_view list, LabCaches lab) {
    std::vector<CacheChoice> caches;
    for (const std::string& item : split_list(list)) {
        CacheChoice c = parse_cache(item, lab);
        if (std::none_of(caches.begin(), caches.end(), [&](const CacheChoice& o) { return o.name == c.name; }))
            caches.push_back(std::move(c));
    }
    return caches;
}

} // namespace tightkv::tool
