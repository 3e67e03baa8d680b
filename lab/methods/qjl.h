// QJL: the residual of a key as a sketch of signs.
// Sources: Zandieh, Daliri, Han, "QJL: 1-Bit Quantized JL Transform for KV Cache Quantization with Zero Overhead", arXiv 2406.03482,
// section 3 (the estimator); Zandieh et al., "TurboQuant", arXiv 2504.19874, section 3.2 (codes first, then QJL of the residual r).
//   stored  codes of k, sign(S r) for a matrix S of m rows of independent N(0,1), and |r|
//   score   <q, k_q> + sqrt(pi/2)/m |r| <S q, sign(S r)>, an unbiased estimate of <q, k>
// The estimate is linear in q, so there is an equivalent key, which is what attention sees here:
//   k' = k_q + sqrt(pi/2)/m |r| S^T sign(S r)
// m = head_dim. Codes are those of turbo2/3/4 and the sketch comes on top: qjl3 has 4 bits a value of a key. S is made from a seed and not
// stored. Values have the codes alone.
#pragma once
#include <cstdint>
#include <vector>

#include "lab/methods/method.h"

namespace tightkv::lab {

std::vector<float> gaussian_matrix(int rows, int columns, uint64_t seed); // [rows][columns]

// In place: r becomes sqrt(pi/2)/m |r| S^T sign(S r); s is [m][d], r [d]. |r| is rounded to fp16.
void sketch_residual(const std::vector<float>& s, std::span<float> r);

} // namespace tightkv::lab
