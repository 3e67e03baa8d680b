// Proof that a search ends at given codes.
//
// Let C be the cost of the guessed path of a segment. A path that costs no more has no branch above C, so its levels lie within some R of
// their values, and within R + |value - guessed level| of the guessed ones. Take the branches near enough as the only ones there are and
// follow the set of states such a path can be in. It starts as all of them; once it is the guessed state alone, it stays so all around the
// cycle, if at every value only the guessed branch leaves the guessed state. Then the guessed path is the only one that costs no more, and
// the search, which finds the cheapest, finds it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "codec/trellis.h"

namespace tightkv {

namespace {

constexpr int kWindows = 24; // sizes of "near"; the fewer levels are near, the sooner one state is left

constexpr int kSafe = 12; // with fewer a state is left by one branch alone
// At 4 bits n and n + 8 lead to one state, but never are they this near: 2 * 7 levels.

// By guessed branch, [index] at 2 and 3 bits, [n + 16 p] at 4: byte p = the states after that a branch near its level reaches from p.
using Reach = std::array<uint64_t, 128>;
struct Near {
    double                      step = 0; // window w: levels up to (w + 1) step away, in fixed point
    std::array<Reach, kWindows> reach{};
};

struct Branch {
    int before, after, level, index;
};

std::vector<Branch> all_branches(int bits) {
    std::vector<Branch> out;
    for (int before = 0; before < kTrellisStates; before++)
        for (int n = 0; n < 1 << bits; n++) {
            if (bits == 2) out.push_back({before, n | (before & 1) << 2, trellis_level<2>(n, before), 4 * n ^ before});
            else if (bits == 3) out.push_back({before, n, trellis_level<3>(n, before), 2 * n ^ before});
            else out.push_back({before, n & 7, trellis_level<4>(n, before), n + 16 * before});
        }
    return out;
}

Near make_near(int bits) {
    const std::vector<Branch> all    = all_branches(bits);
    int                       widest = 255; // one less than the least distance of two levels that leave one state
    for (size_t i = 0; i < all.size(); i++)
        for (size_t k = 0; k < i; k++)
            if (all[i].before == all[k].before) widest = std::min(widest, std::abs(all[i].level - all[k].level) - 1);
    Near out{};
    out.step = static_cast<double>(widest) / kSafe * trellis(bits).unit * kTrellisSteps;
    for (int w = 0; w < kWindows; w++)
        for (const Branch& guessed : all)
            for (const Branch& b : all)
                if (std::abs(b.level - guessed.level) * kSafe <= widest * (w + 1))
                    out.reach[static_cast<size_t>(w)][static_cast<size_t>(guessed.index)] |= uint64_t{1} << (8 * b.before + b.after);
    return out;
}

// Bytes of ones where the mask has bits.
uint64_t spread(unsigned mask) {
    static const std::array<uint64_t, 256> table = [] {
        std::array<uint64_t, 256> t{};
        for (size_t m = 0; m < 256; m++)
            for (int b = 0; b < 8; b++)
                if (m >> b & 1) t[m] |= uint64_t{0xff} << 8 * b;
        return t;
    }();
    return table[mask];
}

template <int Bits> int confirm(int head_dim, const int16_t* x, const uint8_t* guess) {
    static const Near    near   = make_near(Bits);
    const TrellisMetric& m      = trellis_metric(Bits);
    const int            length = head_dim / kSegments;
    uint8_t              index[kMaxHeadDim / kSegments][kSegments], from[kMaxHeadDim / kSegments][kSegments];
    uint16_t             away[kMaxHeadDim / kSegments][kSegments]; // |value - guessed level|
    int                  norm2 = 0, cost[kSegments] = {};
    int                  p[kSegments], o[kSegments];
    for (int s = 0; s < kSegments; s++)
        p[s] = guess[trellis_coordinate(head_dim, s, length - 1)], o[s] = guess[trellis_coordinate(head_dim, s, length - 2)];
    for (int i = 0; i < length; i++) {
        const int c = trellis_coordinate(head_dim, 0, i);
        for (int s = 0; s < kSegments; s++) {
            const int n = guess[c + s], before = Bits == 2 ? p[s] | (o[s] & 1) << 2 : p[s] & 7;
            const int k     = Bits == 2 ? 4 * n ^ before : Bits == 3 ? 2 * n ^ before : n + 16 * before;
            const int level = trellis_level<Bits>(n, before);
            const int fixed = m.table[static_cast<size_t>(k % 16)] + (Bits == 4 ? m.second[static_cast<size_t>(before)] : 0);
            const int e = std::abs(x[c + s] - fixed), square = std::min(e, 32767 >> m.doublings) << m.doublings;
            away[i][s] = static_cast<uint16_t>(e);
            from[i][s] = static_cast<uint8_t>(before);
            cost[s] += (square * square + (1 << 14)) >> 15;
            norm2 += level * level;
            index[i][s] = static_cast<uint8_t>(k);
            o[s] = p[s], p[s] = n;
        }
    }
    for (int s = 0; s < kSegments; s++) {
        // Beyond R a metric is above the cost, also after it lost its low bits; the cap must not hide that. Fixed-point levels are off by a
        // step.
        if (cost[s] + 16 > m.cap) return 0;
        const double r = std::sqrt((cost[s] + 8) * 32768.0) / (1 << m.doublings) + 5, windows = 1 / near.step;
        unsigned     states = 0xff;
        for (int i = 0; i < 2 * length && (states & (states - 1)); i++) { // twice around
            const int k = i < length ? i : i - length;
            const int w = static_cast<int>((r + away[k][s]) * windows);
            if (w >= kWindows) return 0;
            uint64_t to = near.reach[static_cast<size_t>(w)][index[k][s]] & spread(states);
            to |= to >> 32, to |= to >> 16, to |= to >> 8;
            states = static_cast<unsigned>(to & 0xff);
        }
        if (states & (states - 1)) return 0;
        for (int i = 0; i < length; i++) {
            const int w = static_cast<int>((r + away[i][s]) * windows);
            if (w < kSafe) continue;
            if (w >= kWindows) return 0;
            const uint64_t left = near.reach[static_cast<size_t>(w)][index[i][s]] >> 8 * from[i][s] & 0xff;
            if (left & (left - 1)) return 0;
        }
    }
    return norm2;
}

} // namespace

int trellis_confirm(int bits, int head_dim, const int16_t* x, const uint8_t* guess) {
    return bits == 2 ? confirm<2>(head_dim, x, guess) : bits == 3 ? confirm<3>(head_dim, x, guess) : confirm<4>(head_dim, x, guess);
}

} // namespace tightkv
