#include "cache_choice.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "errors.h"
#include "text.h"

namespace tightkv::tool {

CacheChoice parse_cache(std::string_view name) {
    CacheChoice c{.name = std::string(name)};
    if (std::find(std::begin(kStockTypes), std::end(kStockTypes), name) != std::end(kStockTypes)) return c;
    c.stock = false;
    if (const Status s = parse_cache_spec(name, c.spec); !s.ok())
        throw usage_error(fmt::format("cache '{}': {}; types of llama.cpp itself: {}", name, s.message(), fmt::join(kStockTypes, ", ")));
    if (c.spec.k == FormatId::f16 && c.spec.v == FormatId::f16 && !c.spec.n_first && !c.spec.n_last) c.stock = true, c.name = "f16";
    return c;
}

std::vector<CacheChoice> parse_cache_list(std::string_view list) {
    std::vector<CacheChoice> caches;
    for (const std::string& item : split_list(list)) {
        CacheChoice c = parse_cache(item);
        if (std::none_of(caches.begin(), caches.end(), [&](const CacheChoice& o) { return o.name == c.name; }))
            caches.push_back(std::move(c));
    }
    return caches;
}

} // namespace tightkv::tool
