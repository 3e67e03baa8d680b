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
    m.doublings = bits == 2 ? 0 : 1;
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
    m.limit                   = static_cast<int16_t>(fixed(std::min(top, -bottom)) + static_cast<int>(cap_distance / 3));
    return m;
}

int saturated(int v) { return v > 32767 ? 32767 : v < -32768 ? -32768 : v; }

int metric(const TrellisMetric& m, int x, int level) {
    int e = saturated(x - level);
    for (int k = 0; k < m.doublings; k++) e = saturated(2 * e);
    return std::min<int>((e * e + (1 << 14)) >> 15, m.cap) & ~7;
}

// Metric plus tag of the best branch by (state after, state before); kNone: there is none.
constexpr int            kNone = 1 << 29;
template <int Bits> void branches(const TrellisMetric& m, int x, int out[kTrellisStates][kTrellisStates]) {
    for (int after = 0; after < kTrellisStates; after++)
        for (int tag = 0; tag < 8; tag++) {
            const int before = trellis_before<Bits>(after, tag);
            int&      b      = out[after][before];
            if constexpr (Bits == 4) {
                const int    y = saturated(x - m.second[static_cast<size_t>(before)]);
                const size_t n = static_cast<size_t>(after);
                b              = std::min(metric(m, y, m.table[n]), metric(m, y, m.table[n + 8])) | tag;
            } else if (Bits == 3) {
                b = metric(m, x, m.table[static_cast<size_t>(2 * after ^ before)]) | tag;
            } else if ((before & 1) == after >> 2) { // the state after remembers the low bit of p
                b = metric(m, x, m.table[static_cast<size_t>(4 * (after & 3) ^ before)]) | tag;
            }
        }
}

// All start states side by side.
template <int Bits> void search_segment(const TrellisMetric& m, int length, const int16_t* x, uint8_t* codes) {
    using Starts = int[kTrellisStates];
    uint8_t from[kMaxHeadDim / kSegments][kTrellisStates][kTrellisStates]; // [value][state after][start]: tag
    Starts  sum[2][kTrellisStates], branch[kTrellisStates];
    std::fill_n(&branch[0][0], kTrellisStates * kTrellisStates, kNone);
    for (int state = 0; state < kTrellisStates; state++)
        for (int start = 0; start < kTrellisStates; start++) sum[0][state][start] = state == start ? 0 : kNone;
    for (int i = 0; i < length; i++) {
        const Starts* before = sum[i % 2];
        branches<Bits>(m, x[i], branch);
        for (int after = 0; after < kTrellisStates; after++) {
            Starts best;
            std::fill_n(best, kTrellisStates, 2 * kNone);
            for (int p = 0; p < kTrellisStates; p++)
                for (int start = 0; start < kTrellisStates; start++) {
                    const int s = before[p][start] + branch[after][p];
                    best[start] = s < best[start] ? s : best[start];
                }
            for (int start = 0; start < kTrellisStates; start++) {
                sum[(i + 1) % 2][after][start] = best[start] & ~7;
                from[i][after][start]          = static_cast<uint8_t>(best[start] & 7);
            }
        }
    }
    int start = 0;
    for (int s = 1; s < kTrellisStates; s++)
        if (sum[length % 2][s][s] < sum[length % 2][start][start]) start = s;
    for (int i = length - 1, state = start; i >= 0; i--) {
        const int before = trellis_before<Bits>(state, from[i][state][start]);
        codes[i]         = static_cast<uint8_t>(trellis_code<Bits>(m, x[i], state, before));
        state            = before;
    }
}

template <int Bits> void search(int head_dim, const int16_t* x, uint8_t* codes) {
    const TrellisMetric& m                          = trellis_metric(Bits);
    const int            length                     = head_dim / kSegments;
    int16_t              y[kMaxHeadDim / kSegments] = {};
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

int scalar_code_trellis(const float* y, int head_dim, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
    int16_t     x[kMaxHeadDim];
    int8_t      level[kMaxHeadDim];
    const float limit = trellis_metric(bits).limit;
    for (int i = 0; i < head_dim; i++) {
        const float v = std::nearbyint(y[i] * to_fixed);
        x[i]          = static_cast<int16_t>(v > limit ? limit : v < -limit ? -limit : v);
    }
    if (guess)
        if (const int norm2 = trellis_confirm(bits, head_dim, x, guess))
            return std::memcpy(codes, guess, static_cast<size_t>(head_dim)), norm2;
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
