// IEEE binary16 <-> binary32 in integer arithmetic, round to nearest even: the same bits as F16C gives, on any machine.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace tightkv {

constexpr float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16;
    const uint32_t expo = (h >> 10) & 31u;
    uint32_t       mant = h & 1023u;
    if (expo == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mant << 13)); // inf, nan
    if (expo != 0) return std::bit_cast<float>(sign | ((expo + 112) << 23) | (mant << 13));
    // subnormal: mant * 2^-24 is exact in binary32
    const float magnitude = static_cast<float>(mant) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

constexpr uint16_t float_to_half(float f) {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t mag  = bits & 0x7fffffffu;
    if (mag > 0x7f800000u) return sign | 0x7e00u | static_cast<uint16_t>((mag >> 13) & 0x1ffu); // quiet nan
    if (mag >= 0x477ff000u) return sign | 0x7c00u;                                              // >= 65520: inf
    if (mag < 0x38800000u) {                                                                    // subnormal half or zero
        // adding 0.5 puts the unit of the last place at 2^-24, so the hardware rounds to nearest even for us
        const float shifted = std::bit_cast<float>(mag) + 0.5f;
        return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
    }
    const uint32_t odd = (mag >> 13) & 1u;
    return sign | static_cast<uint16_t>((mag - 0x38000000u + 0xfffu + odd) >> 13);
}

inline constexpr uint16_t kHalfMax    = 0x7bffu; // 65504
inline constexpr uint16_t kHalfNegInf = 0xfc00u;

// As a cache stores it: values beyond its range are held at the largest, so that a saved state can always be loaded; what is not finite
// stays so.
constexpr uint16_t storable_half(float f) {
    const uint16_t h = float_to_half(f);
    return (h & 0x7fff) == 0x7c00 && (std::bit_cast<uint32_t>(f) & 0x7f800000u) != 0x7f800000u
               ? static_cast<uint16_t>((h & 0x8000) | kHalfMax)
               : h;
}

// Rows beside exact ones: their codes are those of the f16 row, and the same again when it comes back as a row.
inline void round_to_halves(const float* x, float* kept, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) kept[i] = half_to_float(storable_half(x[i]));
}

} // namespace tightkv
