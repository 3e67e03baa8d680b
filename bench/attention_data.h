// One attention operation to measure: its shape, and data that every side gets alike, each in its own format.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/tile.h"

namespace tightkv::bench {

// Causal attention of n_tokens query tokens, the last of n_kv cached ones.
struct AttentionShape {
    int     head_dim = 128, n_heads = 32, n_kv_heads = 8, n_tokens = 1;
    int64_t n_kv = 0;

    int     group() const { return n_heads / n_kv_heads; }
    float   scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
    int64_t visible(int token) const { return n_kv - n_tokens + token + 1; } // keys that this token attends to
    size_t  row(int token, int head) const { return (static_cast<size_t>(token) * n_heads + head) * head_dim; }
    size_t  rows_floats() const { return static_cast<size_t>(n_tokens) * n_heads * head_dim; } // queries, and outputs
};

// Row of K or V, x: [head_dim]; near Gaussian, the same on every call. V rows differ in size, as real ones do.
void cached_row(Operand op, int kv_head, int64_t token, std::span<float> x);

struct AttentionData {
    explicit AttentionData(const AttentionShape& shape);
    AttentionShape        shape;
    std::vector<float>    q;         // [token][head][head_dim], deviation 1
    std::vector<uint16_t> mask;      // [mask_rows][n_kv] fp16: 0 or -inf
    int                   mask_rows; // n_tokens, padded to 64 as llama.cpp used to
};

} // namespace tightkv::bench
