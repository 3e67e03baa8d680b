// What is kept in the cache folder (downloads, hosts, models, expansions and profiles of models), and how much room it takes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace tightkv::tool {

struct CacheEntry {
    std::string name;      // relative to the folder, for example models/x.F32.gguf
    uint64_t    bytes = 0; // of a folder: of all files in it
    std::string what;
};

// The largest first; empty where there is no such folder. Everything in it can be made again, so everything may be deleted.
std::vector<CacheEntry> list_cache(const std::string& folder);

} // namespace tightkv::tool
