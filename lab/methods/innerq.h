// InnerQ: groups along the inner dimension of the products, normalised key channels.
// Source: Tayaranian Hosseini, Ardakani, Gross, "InnerQ: Hardware-Aware Tuning-Free Quantization of KV Cache for Large Language Models",
// arXiv 2602.23200. From its abstract: groups lie along the inner dimension of each product; every group takes symmetric or asymmetric
// codes, by its statistics; the most recent tokens and the first (sinks) stay in high precision; key channels are normalised with factors
// computed once, which are folded into the query. We had the abstract, not the formulas. Our reading:
//   keys    groups of 32 channels of one token; channel i is divided by sqrt(max |k_i|) first (half strength, as in SmoothQuant)
//   values  groups of 32 tokens of one channel; the tokens of the unfinished group are the recent ones
//   each group takes the code with the smaller squared error; the choice costs nothing (the sign of the scale is free)
//   4 sinks and, for keys, the 32 newest tokens in f16
// Factors come from calibration text (theirs: from each prompt). One-vector variant (innerqv): one vector for all heads of a layer.
#pragma once
#include "lab/methods/method.h"

namespace tightkv::lab {

inline constexpr size_t kSinks = 4, kRecent = 32;

// sqrt(max |x_i|) over rows [n][d]; 1 where a channel is 0.
std::vector<float> channel_factors(std::span<const float> rows, int d);

} // namespace tightkv::lab
