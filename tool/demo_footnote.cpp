#include "demo_footnote.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

namespace tightkv::tool {

std::string depth_name(int depth) { return depth % 1024 == 0 && depth > 0 ? fmt::format("{}K", depth / 1024) : std::to_string(depth); }

std::string demo_footnote(const Json& document) {
    const int   threads = document["threads"];
    std::string line    = fmt::format("{} thread{}, {}, kernels {}.", threads, threads == 1 ? "" : "s", document["cpu"].get<std::string>(),
                                      document["isa"].get<std::string>());
    std::map<int, double> most; // spread of the worst cache, by depth
    for (const Json& r : document["speed"]) {
        double& m = most[r["depth"]];
        m         = std::max(m, r["spread"].get<double>());
    }
    std::string spreads;
    for (const auto& [depth, spread] : most)
        spreads += fmt::format("{}{:.0f} % at {}", spreads.empty() ? "" : ", ", 100 * spread, depth_name(depth));
    if (spreads.empty()) return line;
    return line + fmt::format(" t/s: median of {} rounds, which lie apart, (largest - smallest) / median, by at most {}.",
                              document["rounds"].get<int>(), spreads);
}

} // namespace tightkv::tool
