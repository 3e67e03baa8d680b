// The demonstration's figures as one table, one document and one sentence.
#pragma once
#include <string>
#include <vector>

#include "quality.h"
#include "speed.h"
#include "table.h"

namespace tightkv::tool {

struct DemoFigures {
    std::vector<CacheChoice> caches;
    QualityResult            quality;
    std::vector<int>         depths;
    std::vector<SpeedRow>    speed; // in the order of caches; empty where not measured
};

inline constexpr int kDemoMemoryTokens = 8192; // memory is told for a context of this size

std::vector<Json>   demo_rows(const DemoFigures& f); // one per cache
std::vector<Column> demo_columns(const DemoFigures& f);
// What the user sees, computed from the figures; empty where they are incomplete.
std::string demo_sentence(const DemoFigures& f);
Json        demo_document(const DemoFigures& f, const Json& about, const std::string& sentence);

} // namespace tightkv::tool
