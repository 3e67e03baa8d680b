// A cache as the command line names it: a type of the host (f16, q8_0, …; K and V alike), a specification of ours, or a method of the lab
// (lab:cat3), which is an f16 cache of the host with other rows in it.
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
    std::string lab   = {};   // the method, for lab:METHOD
};

inline constexpr std::string_view kStockTypes[] = {"f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"};
bool                              is_stock_type(std::string_view name);

// Throw Failure (usage) with the accepted values. Methods of the lab are for measuring quality only: others refuse them.
enum class LabCaches { refused, accepted };
CacheChoice              parse_cache(std::string_view name, LabCaches lab = LabCaches::refused);
std::vector<CacheChoice> parse_cache_list(std::string_view list, LabCaches lab = LabCaches::refused); // comma-separated; no duplicates

} // namespace tightkv::tool
