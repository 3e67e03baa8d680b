#include "disturbance.h"

#include <fmt/format.h>

namespace tightkv::tool {

std::string disturbance(const std::vector<Json>& rows) {
    constexpr double kTrusted = 0.5;
    double           most     = 0;
    std::string      side;
    const auto       look = [&](const Json& measured, const std::string& name, const Json& depth) {
        if (const double spread = measured["spread"].get<double>(); spread > most)
            most = spread, side = fmt::format("{} at depth {}", name, depth.get<int>());
    };
    for (const Json& r : rows) {
        look(r, r["format"].get<std::string>(), r["depth"]);
        for (const auto& [name, rival] : r["rivals"].items()) look(rival, name, r["depth"]);
    }
    if (most < kTrusted) return {};
    return fmt::format("rounds of {} lie {:.0f} % of their median apart: something else runs on this machine, and the ratios may be off; "
                       "an idle machine or more --rounds would tell",
                       side, 100 * most);
}

} // namespace tightkv::tool
