// Does the comparison measure the caches and nothing else? An f16 cache against a second one, before anything is reported.
#pragma once
#include <string>

#include "metrics.h"

namespace tightkv::tool {

// Throws Failure unless something was scored and `again`, of a second f16 cache, equals `reference` to the last bit.
// path: batched or decode, for the message.
void require_identical(const std::string& path, const Summary& reference, const Summary& again);

} // namespace tightkv::tool
