// What a ROPE node of the host does to rows, as frequencies.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine_llama_private.h"
#include "engine_llama_rows.h"

namespace tightkv::tool {

// Parameters as ggml's rope lays them out; YaRN's mixture of two frequencies is a frequency, and its factor on the norm turns nothing.
std::optional<Rope> rope_of(const ggml_tensor* node) {
    const int32_t* p      = node->op_params;
    const int      n_dims = p[1], mode = p[2], n_ctx_orig = p[4], first = p[15];
    float          f[6]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    std::memcpy(f, p + 5, sizeof f);
    if ((mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || first != 0 || n_dims < 2) return std::nullopt;
    const auto         pairs = static_cast<size_t>(n_dims / 2);
    std::vector<float> factors(pairs, 1.0f);
    if (const ggml_tensor* t = node->src[2]) ggml_backend_tensor_get(t, factors.data(), 0, pairs * sizeof(float));
    float ramp[2];
    ggml_rope_yarn_corr_dims(n_dims, n_ctx_orig, f[0], f[4], f[5], ramp);
    Rope rope{{}, mode == GGML_ROPE_TYPE_NEOX};
    for (size_t i = 0; i < pairs; i++) {
        const double base = std::pow(static_cast<double>(f[0]), -2.0 * static_cast<double>(i) / n_dims) / static_cast<double>(factors[i]);
        const double span = std::max(0.001, static_cast<double>(ramp[1] - ramp[0]));
        const double mix =
            static_cast<double>(f[2]) * (1 - std::clamp((static_cast<double>(i) - static_cast<double>(ramp[0])) / span, 0.0, 1.0));
        rope.frequencies.push_back(base * (mix + static_cast<double>(f[1]) * (1 - mix)));
    }
    return rope;
}

} // namespace tightkv::tool
