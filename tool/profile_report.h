// A profile as people read it, and as JSON.
#pragma once
#include <string>

#include "cache/profile.h"
#include "table.h"

namespace tightkv::tool {

std::string profile_report(const Profile& p, size_t bytes);
Json        profile_json(const Profile& p, size_t bytes);

} // namespace tightkv::tool
