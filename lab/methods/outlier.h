// Outlier channels with one bit more: 2.5 and 3.5 bits a value.
// Source: Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", arXiv 2504.19874, section 4.3: the
// channels of a head are split into outliers and the rest, and two independent instances of the quantiser serve them, with more bits for
// the outliers. Public accounts of the paper give "32 outlier channels of 128 at 3 bits, 96 at 2 bits = 2.5 bits", whose average is 2.25.
// Our reading: half of the channels have one bit more, which is 2.5 (3.5) exactly. Outliers are the channels of the largest mean square
// on calibration text, per head. Each instance is a row of turbo codes with a transform and a scale of its own (16 bits more a row).
#pragma once
#include "lab/methods/method.h"

namespace tightkv::lab {

// Indices of the head_dim / 2 channels of the largest mean square, ascending.
std::vector<size_t> outlier_channels(std::span<const float> rows, int head_dim);

} // namespace tightkv::lab
