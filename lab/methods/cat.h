// CAT: concentration-alignment transforms.
// Source: Federici, van Breugel, Whatmough, Nagel, "Dissecting Quantization Error: A Concentration-Alignment Perspective", ICML 2026,
// arXiv 2603.04359. For a linear layer W x the transform is T = H M, where M = (Sigma_w # Sigma_x^-1)^(1/2) maximises the alignment
// (Sigma_x = E x x^T, Sigma_w = W^T W, # the geometric mean of matrices) and the Hadamard matrix H the concentration, which rotations
// improve and to which alignment is blind. M is block-diagonal, in blocks of up to 128. (Formulas as summarised in public notes on the
// paper; we had its abstract, not its full text.)
// Our reading for a cache: a key is x, the queries that meet it are the rows of W:
//   keys    M = (Sigma_q # Sigma_k^-1)^(1/2), scores are <M^-T q, M k>
//   values  M = Sigma_v^(-1/4), that is with the identity for Sigma_w: what W_o makes of an error is not looked at
// One-vector variant (catv): blocks of 1, M = diag((E q_i^2 / E k_i^2)^(1/4)), one vector for all heads of a layer.
// Codes: those of turbo2/3/4 (the paper's are uniform). Moments are shrunk towards isotropic by 2 %, which is ours.
#pragma once
#include "lab/methods/coded_rows.h"

namespace tightkv::lab {

inline constexpr int    kCatBlock  = 128;
inline constexpr double kCatShrink = 0.02;

// [d][d]: E x x^T of rows [n][d].
std::vector<double> second_moment(std::span<const float> rows, int d);

struct Alignment {
    std::vector<double> m, inverse; // [d][d], symmetric
};
Alignment alignment(const std::vector<double>& rows, const std::vector<double>& queries, int d); // second moments, positive definite

} // namespace tightkv::lab
