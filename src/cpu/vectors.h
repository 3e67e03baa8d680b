// Arithmetic on the vectors of an ISA level, written once: GCC vector extensions where they suffice, Isa's own functions where not.
//   Isa::kLanes, Floats, Ints, FloatsInMemory   floats per vector, and the vector types
//   Isa::fold_max(v), fold_sum(v)               across the lanes
// Internal linkage: each ISA unit owns its copy, compiled with its own flags.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace tightkv {
namespace {

inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
// The online softmax rescales its sums only when the maximum has grown by more than this (log2): a weight is at most 2^8.
inline constexpr float kLag = 8.0f;

template <class Isa> struct Vectors {
    static constexpr int kLanes = Isa::kLanes;
    using Fv                    = typename Isa::Floats;
    using Iv                    = typename Isa::Ints;
    using Fu                    = typename Isa::FloatsInMemory;

    static Fv   load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
    static void store(float* p, Fv v) { *reinterpret_cast<Fu*>(p) = v; }
    static Fv   splat(float x) { return Fv{} + x; }
    static Fv   larger(Fv a, Fv b) { return a > b ? a : b; }
    static Iv   bits(Fv v) { return std::bit_cast<Iv>(v); }
    static Fv   floats(Iv v) { return std::bit_cast<Fv>(v); }

    // 2^x for x <= 64: 2^(n + f), n to nearest, f in [-0.5, 0.5] by the minimax polynomial of degree 4 (relative error 2.6e-6, 3e-6 with
    // rounding). Below 2^-126 the result is 2^-126 times something at most 1.42, which no sum of softmax weights can see.
    static Fv exp2(Fv x) {
        constexpr float kRound = 0x1.8p23f; // adding it leaves the nearest integer in the low mantissa bits
        x                      = larger(x, splat(-126.0f));
        const Fv t             = x + kRound;
        const Fv f             = x - (t - kRound);
        Fv       p             = splat(9.570101908e-3f);
        p                      = p * f + 5.591786032e-2f;
        p                      = p * f + 2.402474483e-1f;
        p                      = p * f + 6.931218147e-1f;
        p                      = p * f + 9.999992614e-1f;
        return floats(bits(p) + (bits(t) << 23)); // the bits of kRound itself are shifted out
    }
};

} // namespace
} // namespace tightkv
