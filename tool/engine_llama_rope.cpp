// What a ROPE node of the host does to rows, as frequencies.
#include <cstring>

#include "engine_llama_private.h"
#include "engine_llama_rows.h"

namespace tightkv::tool {

// Parameters as ggml's rope lays them out; YaRN's factor on the norm turns nothing.
std::optional<Rope> rope_of(const ggml_tensor* node) {
    const int32_t* p      = node->op_params;
    const int      n_dims = p[1], mode = p[2], n_ctx_orig = p[4], first = p[15];
    float          f[6]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
    std::memcpy(f, p + 5, sizeof f);
    if ((mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) || first != 0 || n_dims < 2) return std::nullopt;
    std::vector<float> factors;
    if (const ggml_tensor* t = node->src[2]) {
        factors.resize(static_cast<size_t>(n_dims / 2));
        ggml_backend_tensor_get(t, factors.data(), 0, factors.size() * sizeof(float));
    }
    float ramp[2];
    ggml_rope_yarn_corr_dims(n_dims, n_ctx_orig, f[0], f[4], f[5], ramp);
    return Rope{rope_frequencies(n_dims, f[0], f[1], f[2], ramp, factors), mode == GGML_ROPE_TYPE_NEOX};
}

} // namespace tightkv::tool
