// The trellis formats turbo2t, turbo3t, turbo4t: trellis-coded quantisation (Marcellin & Fischer 1990) with 8 states, in the bytes of the
// scalar sister. The level of a value follows from its own code n, its predecessor's p and, at 2 bits, the one before that, o:
//   2 bit: table[4n ^ p ^ 4(o & 1)]    3 bit: table[2n ^ p]    4 bit: table[n] + second[p & 7]
// A row is four segments of d/4 values. A segment is cyclic (tail-biting): the predecessor of its first value is its last, so no start
// state is stored. Coordinate c of the transformed row, with c = 32 g + 16 h + 4 u + s (h < 2, u < 4, s < 4), is value h d/8 + 4 g + u of
// segment s. That order makes the predecessor cheap in both kinds of tiles (tile.h); codes of a row are kept in the order of coordinates.
#pragma once
#include <array>
#include <cstdint>

#include "codec/row.h"

namespace tightkv {

inline constexpr int kSegments = 4, kTrellisStates = 8;

struct Trellis {
    int                    bits;
    float                  unit; // value in sigma of level 1
    std::array<int8_t, 16> table;
    std::array<int8_t, 8>  second; // zeros but at 4 bits
};

// Written by lab/trellis_train.cpp; antisymmetric, table[~x] = -table[x], which costs 0.01 dB (2 bit) and 0.02 dB (3 bit), and at 4 bits
// nothing, and halves the look-up where tables live in registers.
inline constexpr Trellis kTrellis2 = {2, 2.13389f / 127, {39, -91, -64, 10, 127, -32, -11, 59, -59, 11, 32, -127, -10, 64, 91, -39}, {}};
inline constexpr Trellis kTrellis3 = {3, 2.47987f / 127, {91, 6, -127, -16, 53, -38, -68, 28, -28, 68, 38, -53, 16, 127, -6, -91}, {}};
inline constexpr Trellis kTrellis4 = {
    4, 3.15922f / 127, {-96, -64, -51, -40, -30, -21, -13, -5, 5, 13, 21, 30, 40, 51, 64, 96}, {-20, 3, 19, -11, -31, 30, 10, -4}};

// bits = 2, 3 or 4
constexpr const Trellis& trellis(int bits) { return bits == 2 ? kTrellis2 : bits == 3 ? kTrellis3 : kTrellis4; }

// Coordinate of value e of segment s.
constexpr int trellis_coordinate(int head_dim, int s, int e) {
    const int half = head_dim / 8, h = e / half, k = e % half;
    return 32 * (k / 4) + 16 * h + 4 * (k % 4) + s;
}

// Where codes are searched: fixed point with this many steps per standard deviation.
inline constexpr int kTrellisSteps = 8192;

// The metric of a branch, the same integers on every ISA level: with d = x - level in fixed point, e = d doubled `doublings` times with
// saturation to int16, it is min((e² + 2^14) >> 15, cap) without its low three bits, which name the branch (tag). cap keeps the sums of 16
// bits from overflowing (trellis_search.h) and values are held within +-limit, a third of the cap's distance beyond the outermost level.
struct TrellisMetric {
    int                     doublings;
    uint16_t                cap;
    int16_t                 limit;
    std::array<int16_t, 16> table; // in fixed point
    std::array<int16_t, 8>  second;
};
// bits = 2, 3 or 4
const TrellisMetric& trellis_metric(int bits);

// The code of a value between two states. At 4 bits that leaves n and n + 8 (in fixed point table[n] < table[n + 8]): the nearer one.
template <int Bits> constexpr int trellis_code(const TrellisMetric& m, int x, int after, int before) {
    if constexpr (Bits == 2) return after & 3;
    if constexpr (Bits == 3) return after;
    const auto   y = 2 * (x - m.second[static_cast<size_t>(before)]);
    const size_t n = static_cast<size_t>(after);
    return after + (y > m.table[n] + m.table[n + 8] ? 8 : 0);
}

// What a tag says about the state before. States: 3 bit: p; 4 bit: p & 7; 2 bit: p | (o & 1) << 2.
//   3 bit: tag = index & 7 = (2n ^ p) & 7    4 bit: tag = state before    2 bit: tag = index & 7 = (4n ^ p ^ 4(o & 1)) & 7
template <int Bits> constexpr int trellis_before(int after, int tag) {
    if constexpr (Bits == 3) return (2 * after ^ tag) & 7;
    if constexpr (Bits == 4) return tag;
    return (tag & 3) | ((tag >> 2 ^ after) & 1) << 2;
}

// Level of code n after a state.
template <int Bits> constexpr int trellis_level(int n, int before) {
    if constexpr (Bits == 2) return kTrellis2.table[static_cast<size_t>(4 * n ^ before)]; // (o & 1) is bit 2 of the state already
    if constexpr (Bits == 3) return kTrellis3.table[static_cast<size_t>(2 * n ^ before)];
    return kTrellis4.table[static_cast<size_t>(n)] + kTrellis4.second[static_cast<size_t>(before)];
}

// int8 levels of a row, [head_dim].
void trellis_levels(const Trellis& t, int head_dim, const uint8_t* codes, int8_t* levels);

// The best codes of a row: in every segment the cyclic path with the least sum of metrics, exactly. x: [head_dim] fixed point within
// +-limit. Scalar reference; the searches of the ISA levels give the same codes. Among equals the lowest tag wins on the way, the lowest
// start state at the end.
void trellis_search(int bits, int head_dim, const int16_t* x, uint8_t* codes);

// Whether a search must end at `guess`, by a proof that is much cheaper than the search: Σ level² if so, 0 if unknown. Meant for a row that
// is encoded again after decoding, whose values lie next to their levels.
int trellis_confirm(int bits, int head_dim, const int16_t* x, const uint8_t* guess);

// What the proof knows of the guessed branch, by its index (4 bits: by n, `merge` by the state before): the least distances in fixed point
// to the levels of other branches. trellis_confirm.cpp explains them.
struct TrellisProof {
    std::array<uint16_t, 16> leave, merge, other, flip;
    int                      parallel; // 4 bits: within this distance of its level a value has the nearer of n and n + 8
};
// bits = 2, 3 or 4
const TrellisProof& trellis_proof(int bits);
// 4 bits: whether every path of a segment that costs at most `cost` has a state in common with the guessed one. branch: [value][segment],
// n + 16 * state before; cost: its metrics, [segment]; away: the largest distance of a value from its level in fixed point, [segment].
bool trellis_one_state(int head_dim, const uint8_t* branch, const int* cost, const int* away);

// The primitives of row_encode.h by way of these two: for levels without a search of their own.
int  scalar_code_trellis(const float* y, int head_dim, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes);
void scalar_trellis_levels_of(const uint8_t* codes, int head_dim, int bits, float w, float* y);

} // namespace tightkv
