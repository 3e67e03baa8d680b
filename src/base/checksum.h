// FNV-1a 64: finds accidents, not attackers. Continue a sum by passing it on.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tightkv {

inline constexpr uint64_t kFnvStart = 0xcbf29ce484222325ull;

inline uint64_t fnv1a(const void* bytes, size_t n, uint64_t sum = kFnvStart) {
    const auto* p = static_cast<const uint8_t*>(bytes);
    for (size_t i = 0; i < n; i++) sum = (sum ^ p[i]) * 0x100000001b3ull;
    return sum;
}

} // namespace tightkv
