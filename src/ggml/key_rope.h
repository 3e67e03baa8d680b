// How the keys that a graph writes turn with their positions.
#pragma once
#include "cache/rope.h"
#include "ggml.h"

namespace tightkv {

// The ROPE node that made the keys which a SET_ROWS node writes. Null where there is none.
const ggml_tensor* rope_of_keys(const ggml_tensor* write);
// The positions of the tokens whose keys a SET_ROWS node writes, as its ROPE node has them: an I32 input of the graph. Null where there is
// none.
const ggml_tensor* positions_of_keys(const ggml_tensor* write);
// What it does to rows of head_dim values, once its operands are there; nothing where there is none or it is of another kind (M-RoPE).
Rope rope_of_rows(const ggml_tensor* write, int head_dim);

} // namespace tightkv
