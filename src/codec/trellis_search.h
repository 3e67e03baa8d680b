// The search of trellis.h for vectors of 16-bit lanes, written once over the operations of an ISA (unsigned lanes, `Vector`):
//   kLanes                        4 quads of lanes or a multiple of two of that
//   quad(p), low_quad(v)          four values, or the four lowest lanes, in every quad
//   sub_signed, add_signed        saturating, lanes taken as int16
//   square(v)                     (v² + 2^14) >> 15 of int16 lanes; -32768² may come out one less
//   least(a, b), sub_floor(a, b)  unsigned minimum; a - b, not below 0
//
// A quad is the four segments, a quad stands for a start state; eight quads are all of them, so one pass along the row searches every
// start of every segment exactly. Sums of metrics keep their low three bits free; there the winner's tag appears, as metrics carry it.
//
// No sum overflows: let C be the cap of a metric. Sums differ, over all starts and states of a segment, by at most S = 2C, as any path can
// enter and leave the best one in one step each (two steps at 2 bits: S = 4C). After every step at least (the sum of start 0, state 0)
// - S is taken off all of them, so they lie within 2S, and a step adds C: 5C or 9C, which cap is chosen for. Sums of states no path leads
// to yet are 3C and too large to win.
#pragma once
#include <cstring>

#include "codec/trellis_row.h"

namespace tightkv {
namespace { // one copy per ISA: never merged by the linker

template <class Isa, int Bits> struct TrellisSearch {
    using Vector                   = typename Isa::Vector;
    static constexpr int kLanes    = Isa::kLanes;
    static constexpr int kQuads    = kLanes / 4;
    static constexpr int kVectors  = kTrellisStates / kQuads; // all starts of all segments
    static constexpr int kBranches = Bits == 4 ? 64 : 16;
    static constexpr int kLongest  = kMaxHeadDim / kSegments;

    // Constants, four lanes alike. 4 bits: table [16], splat; second and tags by state. Else by index.
    struct Tables {
        Vector table[16], second[kVectors], tag[16], cap, start[kVectors][kTrellisStates];
    };
    static Tables make_tables(const TrellisMetric& m) {
        Tables t{};
        for (int l = 0; l < kLanes; l++) {
            const auto put = [l](Vector& v, int x) { v[l] = static_cast<uint16_t>(x); };
            put(t.cap, m.cap);
            for (int v = 0; v < kVectors; v++)
                for (int n = 0; n < kTrellisStates; n++) put(t.start[v][n], v * kQuads + l / 4 == n ? 0 : 3 * m.cap);
            if constexpr (Bits == 4) {
                for (size_t n = 0; n < 16; n++) put(t.table[n], m.table[n]);
                for (int v = 0; v < kVectors; v++)
                    put(t.second[v], m.second[static_cast<size_t>(v * kQuads + l / 4)]), put(t.tag[v], v * kQuads + l / 4);
            } else {
                for (int v = 0; v < 16 / kQuads; v++) {
                    const int index = v * kQuads + l / 4;
                    put(t.table[v], m.table[static_cast<size_t>(index)]), put(t.tag[v], index & 7);
                }
            }
        }
        return t;
    }
    static Vector distance(Vector x, Vector level) {
        Vector e = Isa::sub_signed(x, level);
        if (Bits > 2) e = Isa::add_signed(e, e); // as doublings says
        return Isa::square(e);
    }
    static Vector tagged(Vector metric, Vector cap, Vector tag) {
        return (Isa::least(metric, cap) & Vector(Vector{} + uint16_t(0xfff8))) | tag;
    }

    // Metrics of one value of each segment: [branch] quads. 4 bits: branch = 8 * (state after) + state before; else the index.
    static void branches(const Tables& t, const int16_t* x, uint16_t* out) {
        const Vector value = Isa::quad(x);
        if constexpr (Bits == 4) {
            for (int v = 0; v < kVectors; v++) {
                const Vector y = Isa::sub_signed(value, t.second[v]);
                for (int n = 0; n < 8; n++) {
                    const Vector m = tagged(Isa::least(distance(y, t.table[n]), distance(y, t.table[n + 8])), t.cap, t.tag[v]);
                    std::memcpy(out + (8 * n + v * kQuads) * 4, &m, sizeof m);
                }
            }
        } else {
            for (int v = 0; v < 16 / kQuads; v++) {
                const Vector m = tagged(distance(value, t.table[v]), t.cap, t.tag[v]);
                std::memcpy(out + v * kLanes, &m, sizeof m);
            }
        }
    }

    // The least sum into state n.
    [[gnu::always_inline]] static Vector into(int n, const Vector* before, const uint16_t* branch) {
        Vector best{};
        if constexpr (Bits == 2) {
            const int low = n >> 2; // the low bit of the code before
            for (int k = 0; k < 4; k++) {
                const int    p = (low | (k & 1) << 1) | (k & 2) << 1, index = (4 * (n & 3)) ^ p;
                const Vector sum = before[p] + Isa::quad(branch + 4 * index);
                best             = k ? Isa::least(best, sum) : sum;
            }
        } else {
#pragma GCC unroll 8
            for (int p = 0; p < kTrellisStates; p++) {
                const Vector sum = before[p] + Isa::quad(branch + 4 * (Bits == 4 ? 8 * n + p : (2 * n) ^ p));
                best             = p ? Isa::least(best, sum) : sum;
            }
        }
        return best;
    }

    // Levelled: as above. Else nothing is taken off the sums, which are held at a limit that two more steps do not overflow: right as long
    // as the best path costs less, since no other sum matters; false if it does not.
    template <bool Levelled> static bool run(int head_dim, const int16_t* x, uint8_t* codes) {
        const TrellisMetric& metric = trellis_metric(Bits);
        static const Tables  t      = make_tables(metric);
        const Vector         floor = Vector{} + static_cast<uint16_t>((Bits == 2 ? 4 : 2) * metric.cap), keep = Vector{} + uint16_t(0xfff8);
        const uint16_t       limit = static_cast<uint16_t>(0xfff8 - 2 * metric.cap);
        alignas(64) uint16_t branch[4][kBranches * 4]; // of four values: far enough ahead of their use for loads to find them
        Vector               sum[kVectors][kTrellisStates];
        Vector               from[kLongest][kVectors][kTrellisStates]; // the winner's tag in the low bits
        const Vector         limits = Vector{} + limit;
        std::memcpy(sum, t.start, sizeof sum);
        int i = 0;
        for (int half = 0; half < 2; half++)
            for (int c = 16 * half; c < head_dim; c += 32) {
                for (int u = 0; u < 4; u++) branches(t, x + c + 4 * u, branch[u]);
                for (int u = 0; u < 4; u++, i++) {
                    Vector taken{};
                    for (int v = 0; v < kVectors; v++) {
                        Vector before[kTrellisStates];
                        std::memcpy(before, sum[v], sizeof before);
#pragma GCC unroll 8
                        for (int n = 0; n < kTrellisStates; n++) {
                            const Vector best = into(n, before, branch[u]);
                            from[i][v][n]     = best;
                            if (Levelled && v == 0 && n == 0) taken = Isa::sub_floor(Isa::low_quad(best) & keep, floor);
                            sum[v][n] = Levelled ? (best & keep) - taken : u & 1 ? Isa::least(best & keep, limits) : best & keep;
                        }
                    }
                }
            }
        int state[kSegments], lane[kSegments], vector[kSegments];
        for (int s = 0; s < kSegments; s++) {
            uint16_t least = 0xffff;
            for (int k = 0; k < kTrellisStates; k++) {
                const uint16_t total = sum[k / kQuads][k][k % kQuads * 4 + s];
                if (total < least) least = total, state[s] = k;
            }
            if (!Levelled && least >= limit) return false;
            lane[s] = state[s] % kQuads * 4 + s, vector[s] = state[s] / kQuads;
        }
        for (int half = 1; half >= 0; half--)
            for (int c = head_dim - 32 + 16 * half; c >= 0; c -= 32)
                for (int u = 3; u >= 0; u--) {
                    i--;
                    for (int s = 0; s < kSegments; s++) { // four chains side by side
                        uint16_t tag;
                        std::memcpy(&tag, reinterpret_cast<const uint16_t*>(&from[i][vector[s]][state[s]]) + lane[s], sizeof tag);
                        const int at = c + 4 * u + s, before = trellis_before<Bits>(state[s], tag & 7);
                        codes[at] = static_cast<uint8_t>(trellis_code<Bits>(metric, x[at], state[s], before));
                        state[s]  = before;
                    }
                }
        return true;
    }
};

// The primitives of row_encode.h. Isa::Row: the operations of trellis_row.h.
template <class Isa, int Bits> int search_or_confirm(int d, const int16_t* x, const uint8_t* guess, uint8_t* codes) {
    using Row = TrellisRow<typename Isa::Row, Bits>;
    if (guess && Row::confirm(d, x, guess)) return std::memcpy(codes, guess, static_cast<size_t>(d)), Row::norm2(d, codes);
    using Search = TrellisSearch<Isa, Bits>;
    // Longer rows cost too much as a rule: the metric of a step is 200 to 230 on average.
    if (d > 512 || !Search::template run<false>(d, x, codes)) Search::template run<true>(d, x, codes);
    return Row::norm2(d, codes);
}

template <class Isa> int search_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
    alignas(64) int16_t x[kMaxHeadDim];
    const float         limit = trellis_metric(bits).limit;
    for (int i = 0; i < d; i++) {
        const float v = y[i] * to_fixed, w = v > limit ? limit : v < -limit ? -limit : v;
        x[i] = static_cast<int16_t>(static_cast<int>((w + 0x1.8p23f) - 0x1.8p23f)); // to nearest even
    }
    return bits == 2   ? search_or_confirm<Isa, 2>(d, x, guess, codes)
           : bits == 3 ? search_or_confirm<Isa, 3>(d, x, guess, codes)
                       : search_or_confirm<Isa, 4>(d, x, guess, codes);
}

template <class Isa> void trellis_levels(const uint8_t* codes, int d, int bits, float w, float* y) {
    if (bits == 2) TrellisRow<typename Isa::Row, 2>::levels_of(codes, d, w, y);
    else if (bits == 3) TrellisRow<typename Isa::Row, 3>::levels_of(codes, d, w, y);
    else TrellisRow<typename Isa::Row, 4>::levels_of(codes, d, w, y);
}

} // namespace
} // namespace tightkv
