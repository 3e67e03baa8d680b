// SQuat: the error of a key is kept out of the subspace in which queries lie.
// Source: Wang, Han, Xu, Srivastava, "SQuat: Subspace-orthogonal KV Cache Quantization", COLM 2025, arXiv 2503.24358, and the authors'
// published code (github.com/Red-Hat-AI-Innovation-Team/SQuat), from which the constants are: subspace of 5, lambda = 0.001.
//   Q = diag(S_r) V_r^T of the singular value decomposition of the queries; A = I + lambda Q^T Q
//   Channels are quantised block by block. With the blocks so far (P) fixed at error e_P, the rest (R) is moved to where e^T A e is least:
//   k_R <- k_R - A_RR^-1 A_RP e_P, and then the next block is quantised.
// Codes, groups and values are KIVI's (kivi.h), as in the paper.
// Ours: Q is fitted on calibration text after RoPE (theirs: on each prompt); blocks are a quarter of head_dim (theirs: 64 channels, which
// at head_dim 64 would be all and correct nothing).
// One-vector variant (squatv): a subspace of one direction.
#pragma once
#include "lab/methods/kivi.h"

namespace tightkv::lab {

inline constexpr int    kSquatSubspace = 5;
inline constexpr double kSquatLambda   = 0.001;

// `metric` is A, [d][d].
std::unique_ptr<KiviKeys> make_squat_keys(int bits, int head_dim, const std::vector<double>& metric);

} // namespace tightkv::lab
