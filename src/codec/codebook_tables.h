// Lloyd-Max levels for N(0,1) and what the codec derives from them.
// The levels of record are int8: round(level * 127 / largest level). Scales and norms are computed with these integers,
// so an integer kernel is exact with respect to the format. A test recomputes the real levels from scratch.
#pragma once
#include <array>
#include <cstdint>

namespace tightkv {

// Positive half, ascending; the negative half mirrors it.
inline constexpr std::array<double, 2> kLevels2 = {0.452780, 1.510418};
inline constexpr std::array<double, 4> kLevels3 = {0.245094, 0.756005, 1.343909, 2.151946};
inline constexpr std::array<double, 8> kLevels4 = {0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590};

// Codes are decided in int16 fixed point with this many steps per standard deviation, on every ISA: that is what makes
// encoders bit-exact. 47 of the 65536 values decide differently from the exact nearest level; distortion is unchanged.
inline constexpr int kThresholdSteps = 2048;

struct Codebook {
    int                     n    = 0;    // levels
    float                   unit = 0;    // value in sigma of int8 level 1
    std::array<int8_t, 16>  level{};     // ascending
    std::array<int16_t, 15> threshold{}; // code = number of thresholds below the fixed-point value
};

template <size_t H> constexpr Codebook make_codebook(const std::array<double, H>& half) {
    constexpr auto round_up = [](double v) { return static_cast<int>(v + 0.5); }; // v >= 0
    Codebook       c;
    c.n    = 2 * H;
    c.unit = static_cast<float>(half[H - 1] / 127.0);
    for (size_t i = 0; i < H; i++) {
        const int v        = round_up(half[i] * 127.0 / half[H - 1]);
        c.level[H + i]     = static_cast<int8_t>(v);
        c.level[H - 1 - i] = static_cast<int8_t>(-v);
    }
    c.threshold[H - 1] = 0;
    for (size_t i = 0; i + 1 < H; i++) {
        const int t            = round_up(kThresholdSteps * 0.5 * (half[i] + half[i + 1]));
        c.threshold[H + i]     = static_cast<int16_t>(t);
        c.threshold[H - 2 - i] = static_cast<int16_t>(-t);
    }
    return c;
}

inline constexpr Codebook kCodebook2 = make_codebook(kLevels2);
inline constexpr Codebook kCodebook3 = make_codebook(kLevels3);
inline constexpr Codebook kCodebook4 = make_codebook(kLevels4);

// bits = 2, 3 or 4
constexpr const Codebook& codebook(int bits) { return bits == 2 ? kCodebook2 : bits == 3 ? kCodebook3 : kCodebook4; }

// turbo8 codes are the row's own int8 values; this unit keeps the stored scale near the row's deviation, where fp16 has full precision.
inline constexpr float kUniformUnit = 1.0f / 32;

} // namespace tightkv
