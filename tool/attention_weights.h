// How much of the noise of a row reaches what attention gives: the weights that calibration gives to rows and queries.
//
// With p_tn the weight of key n for query t, v_n its value and o_t = sum p_tn v_n the output, an error e_n of the score of key n changes
// the output by p_tn (v_n - o_t) e_n to first order, and an error of value n by p_tn times it. Errors of rows are independent, so their
// squares add up: the noise of key n counts sum_t p_tn^2 |v_n - o_t|^2, a query counts the same terms summed over its keys. Those of values
// should count sum_t p_tn^2, which a few rows that everything attends to dominate so much that too little is learnt of all others;
// sum_t p_tn is between that and counting all alike, and measured best (docs/quality.md).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine_llama_rows.h"

namespace tightkv::tool {

// Of the rows of one batch that is all there is in the cache. Rows that count nothing, such as the exact ones, are left out of sums.
struct AttentionWeights {
    std::vector<float> keys, values; // [kv_head][token], sums over the query heads of the group
    std::vector<float> queries;      // [head][token]
};

class AttentionWeigher {
public:
    explicit AttentionWeigher(int threads);
    ~AttentionWeigher();
    AttentionWeigher(const AttentionWeigher&)            = delete;
    AttentionWeigher& operator=(const AttentionWeigher&) = delete;

    // keys, values: [token][kv_head][head_dim], after RoPE, of the tokens of `q`, in its order; cells: where they are in the cache. The
    // first `exact` tokens are taken to be without error. Throws Failure.
    AttentionWeights weigh(const QueryRows& q, std::span<const float> keys, std::span<const float> values, std::span<const int64_t> cells,
                           int exact);

private:
    struct Ggml;
    std::unique_ptr<Ggml> ggml_;
};

} // namespace tightkv::tool
