// The operations on cache tensors. Each native op is asked first whether it can do a node; it is then run by all of the host's threads.
#pragma once
#include <string>

#include "cache/read_path.h"
#include "ggml/kv_buffer.h"

namespace tightkv {

// SET_ROWS into a compressed cache: rows of f32, one whole cell each (write_path.cpp).
bool can_write_rows(const ggml_tensor* node);
bool needs_preparation(const CacheTensor& c); // asked once the batch is known
void prepare_rows(const ggml_tensor* node);   // then: on one thread, before the others start
void write_rows(const ggml_tensor* node, int thread, int n_threads);

// FLASH_ATTN_EXT over compressed K and V (read_path.cpp). `params`: the op's own parameters, kept aside while it runs as a custom op.
bool   can_attend(const ggml_tensor* node);
Status prepare_attention(const ggml_tensor* node, const int32_t* params, int n_threads, AttentionJob& job);

// Anything else: decode the cache operands, let the host's op run on f16, re-encode what changed (generic_op.cpp). One thread.
// `node` is the original node with its op and parameters in place.
bool run_generic(ggml_backend_t plain_backend, const ggml_tensor* node, std::string& why);

} // namespace tightkv
