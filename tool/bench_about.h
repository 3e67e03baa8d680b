// What every benchmark says beside its figures, and the options they share.
#pragma once
#include <string>
#include <vector>

#include "table.h"

namespace tightkv::tool {

Json bench_about(); // cpu, compiler, host_version

// Chooses the kernels; empty: as they are. Throws Failure (usage) that names the levels of this machine.
void choose_isa(const std::string& name);

} // namespace tightkv::tool
