// Is the output right? Attention in double precision over exactly the rows that a side holds, before that side is timed.
//
// Every row of output has a bound of its own, relative to its norm |o|, from the operands that the kernels are allowed:
// with p the softmax weights, k_j and v_j the rows, u = 2^-24,
//   integer queries  step <= b/126, b the larger of the two largest |q_i| together and 128/258 of the eight largest: whatever dims share an
//                    int16 lane, pairs stay within 128 and eight within 258. Rounding is uniform: the score of key j has a variance
//                    of σ_j² = scale² step²/12 |k_j|², and moves the output by p_j (v_j - o) times that.
//   integer weights  step <= (four largest weights of a tile of 64)/255.4, each step²/12 |v_j|²; weights include the row's scale
//   f32              |o| off by at most Σ p|v| times (2 * 1e-4 for a cubic exp2, 6u√n for the running sums, 12u√d scale |q| max|k| for
//                    the scores): probabilistic bounds of Higham & Mary 2019 at six deviations.
// The squared error E of the integer operands scatters around its expectation like a sum of f squares; five deviations are allowed:
// E (1 + 5 √(2/f)), f = the effective number of keys 1/Σp², less the one that Σp = 1 takes, in [1, d/2].
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "attention_data.h"

namespace tightkv {
class TileStore;
}

namespace tightkv::bench {

// What the operation reads of one KV head.
struct HeadRows {
    std::vector<double> k, v;    // [n_kv][head_dim]; in the transformed domain where the flags say so
    std::vector<double> v_scale; // [n_kv] factors that a weight is multiplied with before it is rounded
    bool                k_transformed = false, v_transformed = false;
    double              k_step = 0, v_step = 0; // of the integer operands: 1 as above, 1/128 two bytes, 0 none
    double              other = 0;              // relative error allowed beside: of a rival with its own rounding
};

HeadRows rows_of(const TileStore& k, const TileStore& v, int stream, int kv_head, int64_t n_kv);

struct RowVerdict {
    double error = 0, bound = 0;                 // of one output row, relative to its norm
    bool   ok() const { return error <= bound; } // false for NaN
};
// q, out: [head_dim] of one query row that attends to the first `visible` keys.
RowVerdict check_row(const HeadRows& rows, const float* q, const float* out, int head_dim, int64_t visible, double scale);

struct Verdict {
    double      max_rel_error = 0, bound = 0; // of the row that comes closest to its bound, or exceeds it most
    int         rows = 0;
    bool        ok   = true;
    std::string where; // of that row
};
// out: [token][head][head_dim]. Long operations: rows of the first and last KV head, of tokens spread over all, some seconds' worth.
Verdict check_output(const AttentionData& data, const std::function<HeadRows(int kv_head)>& rows, const float* out);

} // namespace tightkv::bench
