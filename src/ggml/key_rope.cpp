// From a SET_ROWS node back to the ROPE node of its keys.
#include "ggml/key_rope.h"

#include "ggml-backend.h"
#include "ggml/kv_buffer.h"
#include "ggml/rope_node.h"

namespace tightkv {

const ggml_tensor* rope_of_keys(const ggml_tensor* write) {
    const ggml_tensor* t = write->src[0];
    for (int depth = 0; t && depth < 16; depth++, t = t->src[0])
        if (t->op == GGML_OP_ROPE) return t;
    return nullptr;
}

const ggml_tensor* positions_of_keys(const ggml_tensor* write) {
    const ggml_tensor* const rope = rope_of_keys(write);
    return rope && rope->src[1] && rope->src[1]->type == GGML_TYPE_I32 && rope->src[1]->op == GGML_OP_NONE ? rope->src[1] : nullptr;
}

Rope rope_of_rows(const ggml_tensor* write, int head_dim) {
    const ggml_tensor* const node   = rope_of_keys(write);
    const int                n_dims = node ? rope_dims(node) : 0;
    if (n_dims == 0 || n_dims > head_dim) return {};
    const ggml_tensor* const factors = node->src[2];
    if (!factors) return rope_of(node, {});
    const ggml_backend_buffer_t buffer = root_of(factors)->buffer;
    if (factors->type != GGML_TYPE_F32 || !buffer || !ggml_backend_buffer_is_host(buffer) || factors->ne[0] < n_dims / 2) return {};
    return rope_of(node, {static_cast<const float*>(factors->data), static_cast<size_t>(n_dims / 2)});
}

} // namespace tightkv
