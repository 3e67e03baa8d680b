// RotorQuant and its relatives: the dense random rotation is replaced by rotations of small blocks.
// Sources: Pope, "RotorQuant: Clifford Algebra Vector Quantization for LLM KV Cache Compression", March 2026 (scrya.com/rotorquant): each
// 3 coordinates go through the sandwich product R x R~ with a rotor R of Cl(3,0); Ji, "IsoQuant", arXiv 2603.28430: each 4 coordinates are
// a quaternion v, and v -> q_L v q_R with unit quaternions; the same paper's planar case: each 2 coordinates are turned by an angle.
// All blocks have rotors of their own, drawn uniformly from a seed: nothing is stored. Codes are those of turbo2/3/4; the residual sketch
// that RotorQuant has besides is qjl.h.
// Ours: where 3 does not divide head_dim, a last pair is turned by an angle and a single last coordinate stays (theirs: padding with zeros,
// which would cost codes).
#pragma once
#include <array>
#include <cstdint>

#include "lab/methods/coded_rows.h"
#include "lab/methods/methods.h"

namespace tightkv::lab {

// s + x e23 + y e31 + z e12, of unit norm.
struct Rotor {
    double s, x, y, z;
};
std::array<double, 3> sandwich(const Rotor& r, const std::array<double, 3>& v);

// Hamilton's product; {real, i, j, k}.
using Quaternion = std::array<double, 4>;
Quaternion multiply(const Quaternion& a, const Quaternion& b);

Matrix block_rotation(Blocks blocks, int d, uint64_t seed);

} // namespace tightkv::lab
