// Uniform codes of a group of values with a scale and a zero in fp16, as most published KV-cache quantisers store them.
#pragma once
#include <cstddef>

namespace tightkv::lab {

inline constexpr int    kGroup     = 32;      // values that share a scale and a zero
inline constexpr double kGroupBits = 16 + 16; // for both

// In place, n values `stride` apart. Asymmetric (KIVI, arXiv 2402.02750, section 2): zero = min, scale = (max - min) / (2^bits - 1),
// code = round((x - zero) / scale), value = code * scale + zero.
void code_asymmetric(float* x, size_t n, size_t stride, int bits);
// zero = 0, scale = max |x| / (2^(bits-1) - 1): one code less, and 0 is exact.
void code_symmetric(float* x, size_t n, size_t stride, int bits);
// Whichever of the two has the smaller squared error.
void code_better(float* x, size_t n, size_t stride, int bits);

} // namespace tightkv::lab
