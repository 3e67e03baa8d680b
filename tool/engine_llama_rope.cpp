// What a ROPE node of the host does to rows, as frequencies.
#include "engine_llama_private.h"
#include "engine_llama_rows.h"
#include "ggml/rope_node.h"

namespace tightkv::tool {

// YaRN's factor on the norm turns nothing.
std::optional<Rope> rope_of(const ggml_tensor* node) {
    const int n_dims = rope_dims(node);
    if (n_dims == 0) return std::nullopt;
    std::vector<float> factors;
    if (const ggml_tensor* t = node->src[2]) {
        factors.resize(static_cast<size_t>(n_dims / 2));
        ggml_backend_tensor_get(t, factors.data(), 0, factors.size() * sizeof(float));
    }
    return tightkv::rope_of(node, factors);
}

} // namespace tightkv::tool
