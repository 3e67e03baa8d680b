// Levels of trellis codes and the scalar search.
#include "codec/trellis.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace tightkv {

namespace {

TrellisMetric make_metric(int bits) {
    const Trellis& t = trellis(bits);
    TrellisMetric  m{};
    // Sums stay below 5 caps with every state reached from every other in one step, below 9 caps at 2 bits, where it takes two.
    m.doublings = bits - 2;
    m.cap       = bits == 2 ? 7280 : 13096;
    int top = -128, bottom = 127;
    for (int i = 0; i < 16; i++)
        for (int p = 0; p < (bits == 4 ? kTrellisStates : 1); p++) {
            const int level = t.table[static_cast<size_t>(i)] + t.second[static_cast<size_t>(p)];
            top = std::max(top, level), bottom = std::min(bottom, level);
        }
    const auto fixed = [&](int level) { return static_cast<int16_t>(std::lround(static_cast<double>(level) * t.unit * kTrellisSteps)); };
    for (size_t i = 0; i < 16; i++) m.table[i] = fixed(t.table[i]);
    for (size_t i = 0; i < 8; i++) m.second[i] = fixed(t.second[i]);
    const double cap_distance = std::sqrt(m.cap * 32768.0) / (1 << m.doublings); // in steps
    m.limit                   = static_cast<int16_t>(fixed(std::min(top, -bottom)) + static_cast<int>(cap_distance / 2));
    return m;
}

int saturated(int v) { return v > 32767 ? 32767 : v < -32768 ? -32768 : v; }

uint32_t metric(const TrellisMetric& m, int x, int level, int tag) {
    int e = saturated(x - level);
    for (int k = 0; k < m.doublings; k++) e = saturated(2 * e);
    const int square = (e * e + (1 << 14)) >> 15;
    return static_cast<uint32_t>((square < m.cap ? square : m.cap) & ~7) | static_cast<uint32_t>(tag);
}

// One value: metrics of all branches by (state before, code's share of the state after), and what a tag says about the state before.
//   3 bit: state p, after n; tag = index & 7 = (2n ^ p) & 7
//   4 bit: state p & 7, after n & 7, of n and n + 8 the better; tag = state before
//   2 bit: state p | (o & 1) << 2, after n | (p & 1) << 2; tag = index & 7
template <int Bits> int state_before(int after, int tag) {
    if constexpr (Bits == 3) return (2 * after ^ tag) & 7;
    if constexpr (Bits == 4) return tag;
    return (tag & 3) | ((tag >> 2 ^ after) & 1) << 2;
}

// The least metric into each state. step: sums before -> after; from: tags.
template <int Bits> void advance(const TrellisMetric& m, int x, const uint32_t* before, uint32_t* after, uint8_t* from) {
    for (int n = 0; n < kTrellisStates; n++) {
        uint32_t best = ~0u;
        if constexpr (Bits == 4) {
            for (int p = 0; p < 8; p++) {
                const int y = saturated(x - m.second[static_cast<size_t>(p)]);
                best        = std::min({best, before[p] + metric(m, y, m.table[static_cast<size_t>(n)], p),
                                        before[p] + metric(m, y, m.table[static_cast<size_t>(n) + 8], p)});
            }
        } else {
            for (int tag = 0; tag < 8; tag++) {
                const int p = state_before<Bits>(n, tag);
                if (Bits == 2 && (p & 1) != n >> 2) continue; // the state after remembers the low bit of p
                const int index = Bits == 3 ? 2 * n ^ p : 4 * (n & 3) ^ (p & 3) ^ (p & 4);
                best            = std::min(best, before[p] + metric(m, x, m.table[static_cast<size_t>(index)], tag));
            }
        }
        after[n] = best & ~7u;
        from[n]  = static_cast<uint8_t>(best & 7);
    }
}

template <int Bits> void search_segment(const TrellisMetric& m, int length, const int16_t* x, uint8_t* codes) {
    constexpr int kLongest = kMaxHeadDim / kSegments;
    uint8_t       from[kLongest][kTrellisStates], chosen[kLongest][kTrellisStates];
    uint32_t      least = ~0u;
    int           state = 0;
    for (int start = 0; start < kTrellisStates; start++) {
        uint32_t sum[2][kTrellisStates];
        std::fill_n(sum[0], kTrellisStates, 1u << 30);
        sum[0][start] = 0;
        for (int i = 0; i < length; i++) advance<Bits>(m, x[i], sum[i % 2], sum[(i + 1) % 2], from[i]);
        if (sum[length % 2][start] >= least) continue;
        least = sum[length % 2][start], state = start;
        std::memcpy(chosen, from, static_cast<size_t>(length) * kTrellisStates);
    }
    for (int i = length - 1; i >= 0; i--) {
        const int before = state_before<Bits>(state, chosen[i][state]);
        codes[i]         = static_cast<uint8_t>(trellis_code<Bits>(m, x[i], state, before));
        state            = before;
    }
}

template <int Bits> void search(int head_dim, const int16_t* x, uint8_t* codes) {
    const TrellisMetric& m      = trellis_metric(Bits);
    const int            length = head_dim / kSegments;
    int16_t              y[kMaxHeadDim / kSegments];
    uint8_t              n[kMaxHeadDim / kSegments];
    for (int s = 0; s < kSegments; s++) {
        for (int i = 0; i < length; i++) y[i] = x[trellis_coordinate(head_dim, s, i)];
        search_segment<Bits>(m, length, y, n);
        for (int i = 0; i < length; i++) codes[trellis_coordinate(head_dim, s, i)] = n[i];
    }
}

} // namespace

const TrellisMetric& trellis_metric(int bits) {
    static const TrellisMetric metrics[] = {make_metric(2), make_metric(3), make_metric(4)};
    return metrics[bits - 2];
}

void trellis_levels(const Trellis& t, int head_dim, const uint8_t* codes, int8_t* levels) {
    const int length = head_dim / kSegments;
    for (int s = 0; s < kSegments; s++) {
        int p = codes[trellis_coordinate(head_dim, s, length - 1)], o = codes[trellis_coordinate(head_dim, s, length - 2)];
        for (int i = 0; i < length; i++) {
            const int c = trellis_coordinate(head_dim, s, i), n = codes[c];
            const int index = t.bits == 2 ? 4 * n ^ p ^ 4 * (o & 1) : t.bits == 3 ? 2 * n ^ p : n;
            levels[c]       = static_cast<int8_t>(t.table[static_cast<size_t>(index)] + t.second[static_cast<size_t>(p & 7)]);
            o = p, p = n;
        }
    }
}

void trellis_search(int bits, int head_dim, const int16_t* x, uint8_t* codes) {
    if (bits == 2) search<2>(head_dim, x, codes);
    else if (bits == 3) search<3>(head_dim, x, codes);
    else search<4>(head_dim, x, codes);
}

int scalar_code_trellis(const float* y, int head_dim, float to_fixed, int bits, uint8_t* codes) {
    int16_t     x[kMaxHeadDim];
    int8_t      level[kMaxHeadDim];
    const float limit = trellis_metric(bits).limit;
    for (int i = 0; i < head_dim; i++) {
        const float v = std::nearbyint(y[i] * to_fixed);
        x[i]          = static_cast<int16_t>(v > limit ? limit : v < -limit ? -limit : v);
    }
    trellis_search(bits, head_dim, x, codes);
    trellis_levels(trellis(bits), head_dim, codes, level);
    int norm2 = 0;
    for (int i = 0; i < head_dim; i++) norm2 += level[i] * level[i];
    return norm2;
}

void scalar_trellis_levels_of(const uint8_t* codes, int head_dim, int bits, float w, float* y) {
    int8_t level[kMaxHeadDim];
    trellis_levels(trellis(bits), head_dim, codes, level);
    for (int i = 0; i < head_dim; i++) y[i] = w * static_cast<float>(level[i]);
}

} // namespace tightkv
