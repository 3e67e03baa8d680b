// What the system has really given to this process.
#pragma once
#include <malloc.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace tightkv::test {

// Bytes of memory in use, from the page tables: the counters of /proc/self/statm are late by up to a few hundred pages per processor. -1
// where the system does not say.
inline double resident_bytes() {
    malloc_trim(0); // what was freed, and the allocator kept
    std::ifstream rollup("/proc/self/smaps_rollup");
    double        kib = -1;
    for (std::string line; std::getline(rollup, line);)
        if (std::sscanf(line.c_str(), "Rss: %lf kB", &kib) == 1) return kib * 1024;
    return -1;
}

} // namespace tightkv::test
