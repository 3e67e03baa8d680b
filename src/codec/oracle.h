// The fp64 oracle: what formats.md says, written a second time in double precision and sharing nothing with the codec but the
// level tables and the signs' formula. It is compiled into the tests only (target tightkv_oracle).
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "codec/row.h"

namespace tightkv::oracle {

std::vector<int> blocks(int head_dim);                 // power-of-two blocks, largest first
double           sign(int index, int which);           // +-1; which: 0 = S1, 1 = S2
double           unit(const Format& f);                // value of int8 level 1 at scale 1
int              level(const Format& f, uint8_t code); // not of trellis formats
std::vector<int> levels_of(const Format& f, std::span<const uint8_t> codes);

// y = T x and x = T^-1 y, [d].
std::vector<double> forward(std::span<const double> x);
std::vector<double> inverse(std::span<const double> y);
// The same y from the definition H[i][j] = (-1)^popcount(i & j); d^2 operations.
std::vector<double> forward_by_definition(std::span<const double> x);

// One pass of the encoder (without the search for the fixed point). Codes are decided where `position` crosses `edge`s.
struct Coded {
    std::vector<double> position; // [d] turbo2/3/4: 2048ths of a standard deviation, turbo2t/3t/4t: 8192ths, within the limit of trellis.h;
                                  // turbo8: 127ths of the largest magnitude
    std::vector<uint8_t> codes;   // [d]
    double               norm  = 0; // |y|
    double               scale = 0; // |y| / (unit * |level(codes)|), not rounded to fp16
};
Coded encode_once(const Format& f, std::span<const double> x);
// Trellis formats: what a path costs beyond nothing, Σ min((position - level)², cap), in squared fixed-point steps; the least there is
// comes from a brute-force search over all cyclic paths of every segment. reach: Σ of the capped distances.
struct PathCost {
    double sum = 0, reach = 0;
};
PathCost             path_cost(const Format& f, std::span<const double> position, std::span<const uint8_t> codes);
std::vector<uint8_t> best_path(const Format& f, std::span<const double> position);
// Distance of a position from the nearest decision edge.
double edge_distance(const Format& f, double position);
// |y| / (unit * |level|) for codes decided by someone else.
double scale_for(const Format& f, double norm, std::span<const uint8_t> codes);

// codes and scale -> transformed row, and the row itself.
std::vector<double> levels(const Format& f, int head_dim, const CodedRow& row);
std::vector<double> decode(const Format& f, int head_dim, const CodedRow& row);

// Attention of one query row. key: [n][dk], value: [n][dv], bias: [n], -inf masks. sink: null or the logit.
struct Attended {
    std::vector<double> weight; // [n], softmax with the sink in the denominator
    std::vector<double> out;    // [dv]; zeros where everything is masked
};
Attended attend(std::span<const double> q, std::span<const double> key, std::span<const double> value, std::span<const double> bias,
                double scale, double softcap, const float* sink);

} // namespace tightkv::oracle
