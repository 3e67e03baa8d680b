// A cache as the command line names it: a type of the host (f16, q8_0, …; K and V alike) or a specification of ours.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "cache/cache_spec.h"

namespace tightkv::tool {

struct CacheChoice {
    std::string name;         // as given
    bool        stock = true; // the host's own type `name`
    CacheSpec   spec  = {};   // where it is not
};

inline constexpr std::string_view kStockTypes[] = {"f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"};

CacheChoice              parse_cache(std::string_view name);      // throws Failure (usage) with the accepted values
std::vector<CacheChoice> parse_cache_list(std::string_view list); // comma-separated; no duplicates

} // namespace tightkv::tool
