// What a ROPE node of the host does to keys and queries, from its parameters as ggml lays them out. Also for the tool's engine.
#pragma once
#include <cstring>
#include <optional>
#include <span>

#include "cache/rope.h"
#include "ggml.h"

namespace tightkv {

// Dimensions that the node turns; 0 where it is of another kind (M-RoPE).
inline int rope_dims(const ggml_tensor* node) {
    const int n_dims = node->op_params[1], mode = node->op_params[2], first = node->op_params[15];
    return (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && first == 0 && n_dims >= 2 ? n_dims : 0;
}

// rope_dims() is not 0. factors: the values of the node's third operand, half as many; empty where it has none.
inline Rope rope_of(const ggml_tensor* node, std::span<const float> factors) {
    const int32_t* p = node->op_params;
    float          f[6], ramp[2]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    std::memcpy(f, p + 5, sizeof f);
    ggml_rope_yarn_corr_dims(p[1], p[4], f[0], f[4], f[5], ramp);
    return {rope_frequencies(p[1], f[0], f[1], f[2], ramp, factors), p[2] == GGML_ROPE_TYPE_NEOX};
}

} // namespace tightkv
