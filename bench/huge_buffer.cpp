#include "huge_buffer.h"

#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <new>
#include <string>

#include "cache/numa.h"

namespace tightkv::bench {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

HugeBuffer::HugeBuffer(size_t bytes) : mapped_((bytes + 2 * kHugePage - 1) / kHugePage * kHugePage), size_(bytes) {
    map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map_ == MAP_FAILED) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(map_) + kHugePage - 1) / kHugePage * kHugePage);
    (void)madvise(map_, mapped_, MADV_HUGEPAGE); // a system without them has small pages, which huge_share() tells
    spread_pages(data_, size_);                  // as the pages of TileStores are
}

HugeBuffer::~HugeBuffer() { munmap(map_, mapped_); }

double huge_share(const void* p, size_t bytes) {
    const auto    from = reinterpret_cast<uintptr_t>(p), to = from + bytes;
    std::ifstream smaps("/proc/self/smaps");
    std::string   line;
    bool          inside = false;
    double        huge = 0, resident = 0; // KiB
    while (std::getline(smaps, line)) {
        uint64_t first = 0, last = 0, kib = 0;
        if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &first, &last) == 2) inside = first < to && last > from;
        else if (inside && std::sscanf(line.c_str(), "Rss: %" SCNu64, &kib) == 1) resident += static_cast<double>(kib);
        else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64, &kib) == 1) huge += static_cast<double>(kib);
    }
    return resident > 0 ? huge / resident : 0;
}

} // namespace tightkv::bench
