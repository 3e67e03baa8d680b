#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace tightkv::bench {

namespace {

// Value of the first line "key : value".
std::string field(const char* file, const std::string& key) {
    std::ifstream in(file);
    std::string   line;
    while (std::getline(in, line)) {
        const size_t colon = line.find(':');
        if (colon == std::string::npos || line.compare(0, key.size(), key) != 0) continue;
        if (line.find_first_not_of(" \t", key.size()) != colon) continue;
        const size_t at = line.find_first_not_of(" \t", colon + 1);
        return at == std::string::npos ? "" : line.substr(at);
    }
    return "";
}

} // namespace

std::string cpu_model() {
    const char* const file = "/proc/cpuinfo";
    std::string       name = field(file, "model name");
    if (name.empty()) name = "unknown processor";
    const std::string family = field(file, "cpu family");
    return family.empty() ? name : name + " (family " + family + ", model " + field(file, "model") + ")";
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

size_t last_cache_bytes() {
    size_t most = 0;
    for (int i = 0; i < 8; i++) {
        std::ifstream in("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/size"); // "32768K"
        size_t        size = 0;
        char          unit = 'K';
        if (in >> size >> unit) most = std::max(most, size << (unit == 'M' ? 20 : 10));
    }
    return most ? most : size_t{32} << 20;
}

size_t available_memory() { return std::strtoull(field("/proc/meminfo", "MemAvailable").c_str(), nullptr, 10) << 10; }

} // namespace tightkv::bench
