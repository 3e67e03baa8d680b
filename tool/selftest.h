// Does the codec work on this machine? Every kernel level this processor has, against the scalar reference.
#pragma once
#include <span>
#include <vector>

#include "table.h"

namespace tightkv::tool {

// One row per kernel level, format and head_dim: fields isa, format, head_dim, rows, relative_error, result ("ok" or what is wrong).
std::vector<Json> selftest(std::span<const int> head_dims);
bool              all_ok(const std::vector<Json>& rows);

} // namespace tightkv::tool
