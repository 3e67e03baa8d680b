// The interposition: which function pointers of the host's CPU device and buffer type are ours.
#pragma once
#include <optional>

#include "cache/cache_spec.h"
#include "ggml/abi.h"
#include "ggml/handshake.h"

namespace tightkv {

// The specification for caches allocated from now on; none: the host's own cache. Thread-safe.
void                     set_active_spec(const std::optional<CacheSpec>& spec);
std::optional<CacheSpec> active_spec();

// Installs everything, once. The handshake has passed.
void install_hooks(const Host& host);

// The allocation half, one per backend API version (abi_v2.cpp, abi_v3.cpp): makes kv_buffer_type() and hooks the CPU buffer type.
void install_allocation_v2(const Host& host);
void install_allocation_v3(const Host& host);

// The graph half (graph.cpp).
ggml_status hooked_graph_compute(ggml_backend_t backend, ggml_cgraph* graph);
// Could the layout of the host's custom operations be learnt? Without it nothing may be hooked.
bool custom_ops_work();
// What a graph tells about its caches before it runs (also called on reserve graphs): head_dim, transposed V.
void observe(const ggml_tensor* op);
// A CPU backend without our hooks, for generic ops; null when the host gives none.
ggml_backend_t new_plain_backend();
// The host's own graph_compute.
ggml_status host_graph_compute(ggml_backend_t backend, ggml_cgraph* graph);

} // namespace tightkv
