// Calibration: from the keys, values and queries of a text to the profile of a model.
//
// Per layer and KV head, in double: mean and covariance of keys and of values, second moment of the queries that read the head. With Sk,
// Sv, Sq, and H the project's Hadamard transform:
//   keys    M = Sq^1/2, M Sk M = U L U^T:  T = H L^-1/4 U^T M   (queries get T^-T)
//   values  the same with M = 1
// T is the transform after which equal bits for every coordinate leave the least variance in the scores: noise that is white after T is
// T^-1 T^-T before it, weighed by Sq. Rows and queries may have weights: what the noise of a row costs, and what noise costs a query.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/status.h"
#include "cache/profile.h"
#include "cache/rope.h"

namespace tightkv {

// Weighted sum and sum of outer products of rows.
struct Moments {
    explicit Moments(int head_dim = 0);
    void add(const float* rows, size_t stride, size_t n, const float* weights = nullptr); // stride in floats; weights: [n], null: 1 each
    // As many rows of equal weight say as much (Kish).
    double equal_rows() const { return weight * weight / (squares > 0 ? squares : 1); }

    int                 d      = 0;
    int64_t             count  = 0;              // rows
    double              weight = 0, squares = 0; // sums of the weights and of their squares
    std::vector<double> sum, products;           // [d], [d][d] of which the lower triangle counts
};

class Calibration {
public:
    // Rows of the cache of one block, [token][kv_head][head_dim], after RoPE. Which tokens count is the caller's choice: the first four of
    // a text are unlike all others. weights: [kv_head][token], finite and not negative; empty: all count alike.
    void add_rows(int block, Operand op, int head_dim, int n_kv_heads, std::span<const float> rows, std::span<const float> weights = {});
    // Queries, [token][head][head_dim], after RoPE; head h reads KV head h / (n_heads / n_kv_heads). weights: [head][token].
    void add_queries(int block, int head_dim, int n_heads, int n_kv_heads, std::span<const float> rows,
                     std::span<const float> weights = {});
    void set_rope(int block, Rope rope);

    // Tokens of the block with the fewest.
    int64_t tokens() const;
    // Statistics as if every token had also stood `offsets - 1` positions later, and everywhere in between: what they would be in a longer
    // text. 1: as they are. Sets the layers of `out`, without norms and formats. Refuses too few tokens and values that are not finite.
    Status solve(int64_t offsets, Profile& out) const;

private:
    struct Layer {
        std::vector<Moments> k, v, q; // per KV head
        Rope                 rope;
    };
    std::map<int, Layer> layers_; // by block
};

// Fewer rows say less about a covariance than none.
inline constexpr int64_t kMinCalibrationTokens = 512;

// Weight of the isotropic part: what is estimated from few tokens (Moments::equal_rows) is believed less.
double shrinkage(double tokens);

} // namespace tightkv
