// Levels of trellis codes, and trellis_confirm(), over vectors of 16 bytes. An ISA gives
//   look(table, index)   entries of a table of 16 bytes, index < 16
//   square(e)            (e² + 2^14) >> 15 of eight 16-bit lanes below 2^15
//   add(a, b)            of such lanes, at most 2^15 - 1
//   sub(a, b)            of unsigned 16-bit lanes, at least 0
// 16 bytes of codes (from a multiple of 16 coordinates) are four successive values of the four segments; in order of the values these
// pieces come as 0, 2, 4, ... and then 1, 3, 5, ..., so the predecessors are the same bytes four lanes earlier (trellis.h).
#pragma once
#include <cstring>

#include "codec/trellis.h"

namespace tightkv {
namespace { // one copy per ISA: never merged by the linker

typedef uint8_t  Bytes __attribute__((vector_size(16)));
typedef int8_t   SignedBytes __attribute__((vector_size(16)));
typedef uint16_t Words __attribute__((vector_size(16)));
typedef int16_t  SignedWords __attribute__((vector_size(16)));

// Lanes of a and b, those of b behind those of a.
template <int... Index, class Vector> Vector shuffled(Vector a, Vector b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, Index...);
#else
    return __builtin_shuffle(a, b, Vector{Index...});
#endif
}

template <class Isa, int Bits> struct TrellisRow {
    static Bytes bytes(const void* p) {
        Bytes v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    // Entries of a table of 16-bit values, by 16 indices.
    struct Table {
        Bytes low{}, high{};
        template <class Entries> explicit Table(const Entries& entries) {
            for (size_t i = 0; i < entries.size(); i++)
                low[i] = static_cast<uint8_t>(entries[i]), high[i] = static_cast<uint8_t>(entries[i] >> 8);
        }
    };
    struct Pair {
        Words first, second;
    };
    static Pair entries(const Table& t, Bytes index) {
        const Bytes l = Isa::look(t.low, index), h = Isa::look(t.high, index);
        return {Words(shuffled<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(l, h)),
                Words(shuffled<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(l, h))};
    }

    // Of 16 values. 4 bits: index = n. branch: which of all branches, [index] or [n + 16 before].
    struct Branches {
        Bytes index, before, branch;
    };
    static Branches branches(Bytes n, Bytes earlier) { // earlier: the 16 bytes before
        const Bytes p = shuffled<12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27>(earlier, n);
        if constexpr (Bits == 2) {
            const Bytes o      = shuffled<8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23>(earlier, n) & 1;
            const Bytes before = p | times4(o), index = times4(n) ^ before;
            return {index, before, index};
        } else if constexpr (Bits == 3) {
            const Bytes index = (n + n) ^ p;
            return {index, p, index};
        } else {
            const Bytes before = p & 7;
            return {n, before, n + times4(times4(before))};
        }
    }
    static Bytes times4(Bytes v) { return (v + v) + (v + v); }

    // Calls f(coordinate, branches) for all pieces in order of the values.
    template <class F> [[gnu::always_inline]] static void pieces(int d, const uint8_t* codes, F f) {
        Bytes earlier = bytes(codes + d - 16);
        for (int half = 0; half < 2; half++)
            for (int c = 16 * half; c < d; c += 32) {
                const Bytes n = bytes(codes + c);
                f(c, branches(n, earlier));
                earlier = n;
            }
    }

    struct Levels {
        Bytes table, second;
        Levels() {
            const Trellis& t = trellis(Bits);
            std::memcpy(&table, t.table.data(), sizeof table);
            second = Bytes{};
            std::memcpy(&second, t.second.data(), sizeof t.second);
        }
        SignedBytes operator()(const Branches& b) const {
            const Bytes level = Isa::look(table, b.index);
            return SignedBytes(Bits == 4 ? level + Isa::look(second, b.before) : level);
        }
    };
    static void levels_of(const uint8_t* codes, int d, float w, float* y) {
        const Levels levels;
        pieces(d, codes, [&](int c, const Branches& b) {
            const SignedBytes level = levels(b);
            for (int i = 0; i < 16; i++) y[c + i] = w * static_cast<float>(level[i]);
        });
    }
    static int norm2(int d, const uint8_t* codes) {
        const Levels       levels;
        alignas(16) int8_t level[kMaxHeadDim];
        pieces(d, codes, [&](int c, const Branches& b) {
            const SignedBytes v = levels(b);
            std::memcpy(level + c, &v, sizeof v);
        });
        int sum = 0;
        for (int i = 0; i < d; i++) sum += level[i] * level[i];
        return sum;
    }

    // ---- the proof, step by step as in trellis_confirm.cpp

    static Words smaller(Words a, Words b) { return a < b ? a : b; }
    static Words larger(Words a, Words b) { return a > b ? a : b; }
    static Words swapped(Words v) { return shuffled<4, 5, 6, 7, 0, 1, 2, 3>(v, v); }
    // e: distances
    static Words metric(Words e, Words cap) {
        constexpr int kDoublings = Bits == 2 ? 0 : 1;
        e                        = smaller(e, Words{} + static_cast<uint16_t>(32767 >> kDoublings));
        if (kDoublings) e += e;
        return smaller(Isa::square(e), cap) & 0xfff8;
    }

    static bool confirm(int d, const int16_t* x, const uint8_t* codes) {
        static const TrellisProof&  proof = trellis_proof(Bits);
        static const TrellisMetric& m     = trellis_metric(Bits);
        static const Table fixed(m.table), second(m.second), leave(proof.leave), merge(proof.merge), other(proof.other), flip(proof.flip);
        const Words        cap        = Words{} + m.cap;
        const auto         metric     = [cap](Words e) { return TrellisRow::metric(e, cap); };
        const Words        everything = Words{} + uint16_t(0x7fff);
        Words              cost{}, away{}, least_leave = everything, least_merge = everything, without{}, flipped{}, kept{};
        uint8_t            branch[kMaxHeadDim], *next = branch; // in order of the values
        pieces(d, codes, [&](int c, const Branches& b) {
            Pair       level   = entries(fixed, b.index);
            const Pair leaving = entries(leave, b.index), merging = entries(merge, Bits == 4 ? b.before : b.index);
            Words      value[2];
            std::memcpy(value, x + c, sizeof value);
            if constexpr (Bits == 4) {
                const Pair s = entries(second, b.before);
                level.first += s.first, level.second += s.second;
            }
            const Words e[2] = {distance(value[0], level.first), distance(value[1], level.second)};
            cost             = Isa::add(cost, Isa::add(metric(e[0]), metric(e[1])));
            away             = larger(away, larger(e[0], e[1]));
            least_leave      = smaller(least_leave, smaller(metric(Isa::sub(leaving.first, e[0])), metric(Isa::sub(leaving.second, e[1]))));
            least_merge      = smaller(least_merge, smaller(metric(Isa::sub(merging.first, e[0])), metric(Isa::sub(merging.second, e[1]))));
            if constexpr (Bits == 4) {
                std::memcpy(next, &b.branch, sizeof b.branch), next += sizeof b.branch;
            } else {
                const Pair  apart = entries(other, b.index);
                const Words a[2]  = {metric(Isa::sub(apart.first, e[0])), metric(Isa::sub(apart.second, e[1]))};
                if constexpr (Bits == 3) {
                    const Words four = smaller(a[0], a[1]);
                    without          = Isa::add(without, smaller(four, swapped(four)));
                } else {
                    const Pair  low  = entries(flip, b.index);
                    const Words f[2] = {metric(Isa::sub(low.first, e[0])), metric(Isa::sub(low.second, e[1]))};
                    for (int k = 0; k < 4; k++) { // value by value, in the low four lanes
                        const Words flips = k & 1 ? swapped(f[k / 2]) : f[k / 2], keeps = k & 1 ? swapped(a[k / 2]) : a[k / 2];
                        const Words best = smaller(flipped, kept);
                        kept = smaller(Isa::add(best, keeps), flipped), flipped = Isa::add(best, flips);
                    }
                }
            }
        });
        cost        = Isa::add(cost, swapped(cost));
        away        = larger(away, swapped(away));
        least_leave = smaller(least_leave, swapped(least_leave)), least_merge = smaller(least_merge, swapped(least_merge));
        if constexpr (Bits == 2) without = smaller(flipped, kept);
        const Words detour = Isa::add(least_leave, least_merge);
        for (int s = 0; s < kSegments; s++) {
            if (detour[s] <= cost[s]) return false;
            if (Bits < 4 ? without[s] <= cost[s] : away[s] > proof.parallel) return false;
        }
        if constexpr (Bits == 4) {
            int costs[kSegments], furthest[kSegments];
            for (int s = 0; s < kSegments; s++) costs[s] = cost[s], furthest[s] = away[s];
            return trellis_one_state(d, branch, costs, furthest);
        }
        return true;
    }
    static Words distance(Words a, Words b) {
        const SignedWords u = SignedWords(a), v = SignedWords(b);
        return Words(u > v ? u : v) - Words(u > v ? v : u);
    }
};

} // namespace
} // namespace tightkv
