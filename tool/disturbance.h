// What a benchmark says when its rounds lie too far apart for its ratios to be trusted.
#pragma once
#include <string>
#include <vector>

#include "table.h"

namespace tightkv::tool {

// Of rows of `bench attention`, whose `spread` and whose rivals' are (largest - smallest) / median of the rounds: a sentence that names the
// side whose rounds lie furthest apart, or nothing while that is less than half the median. Sides in turn share a slow moment, so less
// moves all of them alike.
std::string disturbance(const std::vector<Json>& rows);

} // namespace tightkv::tool
