#include "attention_data.h"

#include <algorithm>

namespace tightkv::bench {

namespace {

uint64_t mix(uint64_t z) { // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Eight bytes added up are near enough to Gaussian (excess kurtosis -0.15), and filling a long cache should take seconds.
void gaussian(uint64_t seed, float deviation, std::span<float> x) {
    constexpr uint64_t kEven = 0x00ff00ff00ff00ffull, kSum = 0x0001000100010001ull;
    constexpr float    kMean = 8 * 127.5f, kDeviation = 209.02f; // sqrt(8 * (256² - 1) / 12)
    uint64_t           state = mix(seed + 0x9e3779b97f4a7c15ull);
    for (float& v : x) {
        const uint64_t z = mix(state += 0x9e3779b97f4a7c15ull);
        v                = (static_cast<float>(((z & kEven) + (z >> 8 & kEven)) * kSum >> 48) - kMean) * (deviation / kDeviation);
    }
}

} // namespace

void cached_row(Operand op, int kv_head, int64_t token, std::span<float> x) {
    const uint64_t seed = (static_cast<uint64_t>(token) * 4096 + static_cast<uint64_t>(kv_head)) * 2 + (op == Operand::V);
    gaussian(seed, op == Operand::V ? std::exp2(static_cast<float>(mix(seed) % 3) - 1) : 1.0f, x);
}

AttentionData::AttentionData(const AttentionShape& s) : shape(s), q(s.rows_floats()), mask_rows((s.n_tokens + 63) / 64 * 64) {
    constexpr uint16_t kNegInf = 0xfc00;
    gaussian(~uint64_t{0}, 1.0f, q);
    mask.assign(static_cast<size_t>(mask_rows) * static_cast<size_t>(s.n_kv), kNegInf);
    for (int t = 0; t < s.n_tokens; t++) std::fill_n(mask.begin() + static_cast<ptrdiff_t>(t * s.n_kv), s.visible(t), uint16_t{0});
}

} // namespace tightkv::bench
