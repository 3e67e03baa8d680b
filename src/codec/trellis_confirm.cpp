// Proof that a search ends at given codes.
//
// Let C be the cost of the guessed path of a segment, in the metrics of the search. Another path costs more than C if
//   - it has a state in common with the guessed one: then somewhere it leaves it, and elsewhere it comes back. A branch that leaves has
//     a level at least `leave` from the guessed one, so at least leave - e from the value, where e is the value's distance from the guessed
//     level; one that comes back likewise. The least metric of either kind, over all values, must together exceed C.
//   - it has none in common. 3 bit: let D be the exclusive or of the two codes, never 0. The level is the guessed one only where D of the
//     value before is 2 D, so not three times running: of every four values one costs what `other` levels cost.
//     2 bit: the level is another where the low or the high bit of the code before differs (`flip`, `other`), and where neither does, the
//     low bit of the one before that must. So each value costs as much as one of these, or nothing after one where the low bit differed;
//     the cheapest such sequence must exceed C.
//     4 bit: no branch of a path that costs at most C is further from its value than some R, nor further than R + e from the guessed
//     level. Follow the set of states that such branches lead to, from all states on: once it is one state alone, no path is without it.
// Codes n and n + 8 of 4 bits join the same states; the nearer is chosen, which the guess is if e is less than half their distance.
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "codec/trellis.h"

namespace tightkv {

namespace {

struct Branch {
    int before, after, level, index; // index: of a table of TrellisProof; 4 bits: n
};

std::vector<Branch> all_branches(int bits) {
    std::vector<Branch> out;
    for (int before = 0; before < kTrellisStates; before++)
        for (int n = 0; n < 1 << bits; n++) {
            if (bits == 2) out.push_back({before, n | (before & 1) << 2, trellis_level<2>(n, before), 4 * n ^ before});
            else if (bits == 3) out.push_back({before, n, trellis_level<3>(n, before), 2 * n ^ before});
            else out.push_back({before, n & 7, trellis_level<4>(n, before), n});
        }
    return out;
}

int fixed_level(int bits, const Branch& b) {
    const TrellisMetric& m = trellis_metric(bits);
    return m.table[static_cast<size_t>(b.index)] + (bits == 4 ? m.second[static_cast<size_t>(b.before)] : 0);
}

TrellisProof make_proof(int bits) {
    TrellisProof p{};
    for (auto* table : {&p.leave, &p.merge, &p.other, &p.flip}) table->fill(UINT16_MAX);
    p.parallel                    = INT_MAX;
    const std::vector<Branch> all = all_branches(bits);
    for (const Branch& guessed : all)
        for (const Branch& b : all) {
            const int  distance = std::abs(fixed_level(bits, guessed) - fixed_level(bits, b)), flips = guessed.index ^ b.index;
            const auto note = [distance](uint16_t& least) { least = static_cast<uint16_t>(std::min<int>(least, distance)); };
            const auto k    = static_cast<size_t>(guessed.index);
            if (b.before == guessed.before && b.after != guessed.after) note(p.leave[k]);
            if (b.before != guessed.before && b.after == guessed.after) note(p.merge[bits == 4 ? static_cast<size_t>(guessed.before) : k]);
            if (bits == 3 && flips) note(p.other[k]);
            if (bits == 2 && flips & 1) note(p.flip[k]);
            if (bits == 2 && !(flips & 1) && flips & 2) note(p.other[k]);
            if (bits == 4 && b.before == guessed.before && flips == 8) p.parallel = std::min(p.parallel, (distance - 1) / 2);
        }
    return p;
}

int metric(const TrellisMetric& m, int e) {
    const int d = std::min(std::max(e, 0), 32767 >> m.doublings) << m.doublings;
    return std::min<int>((d * d + (1 << 14)) >> 15, m.cap) & ~7;
}

// 4 bits: byte p of reach[w][n + 16 q] = the states after that a branch reaches from p whose level is at most w from that of n after q.
constexpr int kWindows = 16;
using Reach            = std::array<std::array<uint64_t, 16 * kTrellisStates>, kWindows>;

Reach make_reach() {
    const std::vector<Branch> all = all_branches(4);
    Reach                     reach{};
    for (int w = 0; w < kWindows; w++)
        for (const Branch& guessed : all)
            for (const Branch& b : all)
                if (std::abs(b.level - guessed.level) <= w)
                    reach[static_cast<size_t>(w)][static_cast<size_t>(guessed.index + 16 * guessed.before)] |= uint64_t{1}
                                                                                                               << (8 * b.before + b.after);
    return reach;
}

// Bytes of ones where the mask has bits.
std::array<uint64_t, 256> make_spread() {
    std::array<uint64_t, 256> t{};
    for (size_t m = 0; m < 256; m++)
        for (int b = 0; b < 8; b++)
            if (m >> b & 1) t[m] |= uint64_t{0xff} << 8 * b;
    return t;
}

template <int Bits> bool confirm(int head_dim, const int16_t* x, const uint8_t* guess, int& norm2) {
    const TrellisProof&  proof  = trellis_proof(Bits);
    const TrellisMetric& m      = trellis_metric(Bits);
    const int            length = head_dim / kSegments;
    uint8_t              branch[kMaxHeadDim];
    int                  costs[kSegments], furthest[kSegments];
    norm2 = 0;
    for (int s = 0; s < kSegments; s++) {
        const auto code = [&](int e) -> int { return guess[trellis_coordinate(head_dim, s, (e + length) % length)]; };
        int        cost = 0, away = 0, leave = INT_MAX, merge = INT_MAX, without = 0, flipped = 0, kept = 0, four = INT_MAX;
        for (int i = 0; i < length; i++) {
            const int    n = code(i), p = code(i - 1), o = code(i - 2), before = Bits == 2 ? p | (o & 1) << 2 : p & 7;
            const size_t k     = static_cast<size_t>(Bits == 2 ? 4 * n ^ before : Bits == 3 ? 2 * n ^ before : n);
            const int    level = trellis_level<Bits>(n, before);
            const int    e =
                std::abs(x[trellis_coordinate(head_dim, s, i)] - m.table[k] - (Bits == 4 ? m.second[static_cast<size_t>(before)] : 0));
            norm2 += level * level;
            cost += metric(m, e), away = std::max(away, e);
            leave = std::min(leave, metric(m, proof.leave[k] - e));
            merge = std::min(merge, metric(m, proof.merge[Bits == 4 ? static_cast<size_t>(before) : k] - e));
            if (Bits == 4) branch[kSegments * i + s] = static_cast<uint8_t>(n + 16 * before);
            const int other = metric(m, proof.other[k] - e);
            if (Bits == 3) {
                four = std::min(four, other);
                if (i % 4 == 3) without += four, four = INT_MAX;
            } else if (Bits == 2) {
                const int best = std::min(flipped, kept);
                kept = std::min(best + other, flipped), flipped = best + metric(m, proof.flip[k] - e);
            }
        }
        if (Bits == 2) without = std::min(flipped, kept);
        if (leave + merge <= cost || (Bits == 4 ? away > proof.parallel : without <= cost)) return false;
        costs[s] = cost, furthest[s] = away;
    }
    return Bits < 4 || trellis_one_state(head_dim, branch, costs, furthest);
}

} // namespace

const TrellisProof& trellis_proof(int bits) {
    static const TrellisProof proofs[] = {make_proof(2), make_proof(3), make_proof(4)};
    return proofs[bits - 2];
}

bool trellis_one_state(int head_dim, const uint8_t* branch, const int* cost, const int* away) {
    static const Reach                     reach  = make_reach();
    static const std::array<uint64_t, 256> spread = make_spread();
    const TrellisMetric&                   m      = trellis_metric(4);
    const uint64_t*                        near[kSegments];
    for (int s = 0; s < kSegments; s++) {
        if (cost[s] >= m.cap) return false; // it would hide how far a branch is
        // Beyond R a metric is above the cost, also after it lost its low bits. Fixed-point levels are off by a step each.
        const double r = std::sqrt((cost[s] + 7.5) * 32768) / (1 << m.doublings) + 2;
        const double w = (r + away[s]) / (trellis(4).unit * kTrellisSteps);
        if (w >= kWindows) return false;
        near[s] = reach[static_cast<size_t>(w)].data();
    }
    uint64_t states[kSegments] = {0xff, 0xff, 0xff, 0xff};
    unsigned open              = (1 << kSegments) - 1; // segments not yet down to one state
    for (int round = 0; round < 2; round++)            // twice around
        for (int i = 0; i < head_dim; i += kSegments) {
            for (int s = 0; s < kSegments; s++) { // side by side
                uint64_t to = near[s][branch[i + s]] & spread[states[s]];
                to |= to >> 32, to |= to >> 16, to |= to >> 8;
                states[s] = to & 0xff;
                open &= ~(static_cast<unsigned>((states[s] & (states[s] - 1)) == 0) << s);
            }
            if (!open) return true;
        }
    return false;
}

int trellis_confirm(int bits, int head_dim, const int16_t* x, const uint8_t* guess) {
    int        norm2 = 0;
    const bool found = bits == 2   ? confirm<2>(head_dim, x, guess, norm2)
                       : bits == 3 ? confirm<3>(head_dim, x, guess, norm2)
                                   : confirm<4>(head_dim, x, guess, norm2);
    return found ? norm2 : 0;
}

} // namespace tightkv
