#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

namespace tightkv::bench {

namespace {

typedef uint64_t Words __attribute__((vector_size(64)));

// Four independent sums: the loads wait for memory, not for each other. bytes: a multiple of 256.
uint64_t sum(const uint8_t* p, size_t bytes) {
    Words a[4] = {};
    for (const uint8_t* const end = p + bytes; p < end; p += 256)
        for (int i = 0; i < 4; i++) {
            Words x;
            std::memcpy(&x, p + 64 * i, sizeof x);
            a[i] += x;
        }
    uint64_t total = 0;
    for (int i = 0; i < 8; i++) total += a[0][i] + a[1][i] + a[2][i] + a[3][i];
    return total;
}

std::atomic<uint64_t> sink; // keeps the sums

} // namespace

ReadBandwidth::ReadBandwidth(size_t bytes, ThreadTeam& team) : buffer_(bytes), team_(team) {
    std::memset(buffer_.data(), 1, bytes); // untouched memory would be one zero page, read from the cache
}

double ReadBandwidth::gb_per_s() {
    const size_t part  = buffer_.size() / static_cast<size_t>(team_.size()) / 256 * 256;
    const auto   start = std::chrono::steady_clock::now();
    team_.run([&](int thread) { sink += sum(buffer_.data() + part * static_cast<size_t>(thread), part); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return static_cast<double>(part) * team_.size() / seconds * 1e-9;
}

} // namespace tightkv::bench
