// The line under the demonstration's table: what was measured on, and how far the rounds of the decode speed lay apart.
#pragma once
#include <string>

#include "table.h"

namespace tightkv::tool {

// document: threads, cpu, isa, rounds, and `speed` with depth and spread of each cache (demo_document). Without speed: the machine alone.
std::string demo_footnote(const Json& document);
std::string depth_name(int depth); // 512 -> "512", 8192 -> "8K"

} // namespace tightkv::tool
