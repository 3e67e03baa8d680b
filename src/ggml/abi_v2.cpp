// Backend API 2: a buffer is asked for by size alone, so the cache is recognised by the size queries that precede it. The host asks for
// every tensor of the cache in turn (get_alloc_size), then allocates the sum. Where it gets a buffer of its own, it asks about every tensor
// again while it places it there.
#include <utility>
#include <vector>

#include "ggml/guard.h"
#include "ggml/hooks.h"
#include "ggml/kv_buffer.h"
#include "ggml/model_profile.h"
#include "ggml/other_types.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

using Type = abi::BufferTypeV2;

abi::BufferTypeInterfaceV2 host_type;
Type                       kv_type;

const char* kv_name(ggml_backend_buffer_type_t) { return "tightkv"; }
bool        kv_is_host(ggml_backend_buffer_type_t) { return false; } // true would let stock kernels read packed rows as f16
size_t kv_alignment(ggml_backend_buffer_type_t) { return host_type.get_alignment(reinterpret_cast<ggml_backend_buffer_type_t>(&kv_type)); }
ggml_backend_buffer_t kv_alloc(ggml_backend_buffer_type_t, size_t size) {
    return guarded<ggml_backend_buffer_t>(nullptr, [&] { return allocate_kv_buffer(size, 0, {}, {}); });
}

// The run of cache tensors asked about on this thread since the last other question.
struct Query {
    std::vector<const ggml_tensor*> caches;  // those we would compress
    OtherTypes                      others;  // those we would not
    std::vector<const ggml_tensor*> tensors; // all cache_* tensors, ours or not
    size_t                          sum = 0; // of their padded sizes
};
thread_local Query query;

// What was left to the host, which now places it: tensor after tensor, each asked about once or twice. Not a new cache. Addresses only, the
// tensors may be gone.
struct Placing {
    std::vector<const ggml_tensor*> tensors;
    size_t                          next = 0;

    bool is(const ggml_tensor* t) {
        if (tensors.empty()) return false;
        if (next < tensors.size() && t == tensors[next]) return next++, true;
        if (next > 0 && t == tensors[next - 1]) return true;
        *this = {};
        return false;
    }
};
thread_local Placing placing;

size_t get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor* t) {
    const size_t n = host_type.get_alloc_size ? host_type.get_alloc_size(buft, t) : ggml_nbytes(t);
    if (placing.is(t)) return n;
    if (t->view_src || t->buffer || !has_cache_name(t)) {
        query = {};
        return n;
    }
    guarded([&] {
        query.tensors.push_back(t);
        if (is_cache_tensor(t)) query.caches.push_back(t);
        else query.others.look_at(t);
        query.sum += GGML_PAD(n, host_type.get_alignment(buft)); // last: without memory for the rest the sum is not that of the host
    });
    return n;
}

// Null: not a cache to compress.
ggml_backend_buffer_t alloc_compressed(const Query& seen, size_t size) {
    const auto spec = active_spec();
    if (!spec || size == 0) return nullptr;
    if (size == seen.sum) seen.others.tell();
    if (seen.caches.empty()) return nullptr;
    if (size != seen.sum) {
        say_once("a cache is left to the host as f16: its allocation was not recognised");
        return nullptr;
    }
    if (!profile_fits(seen.caches, *spec)) return nullptr;
    if (ggml_backend_buffer_t b = allocate_kv_buffer(size, seen.tensors.size(), seen.caches, *spec)) return b;
    say("no address space for the compressed cache: left to the host as f16");
    return nullptr;
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    Query seen = std::exchange(query, {});
    placing    = {};
    if (ggml_backend_buffer_t b = guarded<ggml_backend_buffer_t>(nullptr, [&] { return alloc_compressed(seen, size); })) return b;
    ggml_backend_buffer_t const b = host_type.alloc_buffer(buft, size);
    if (b && size == seen.sum) placing.tensors = std::move(seen.tensors);
    return b;
}

} // namespace

void install_allocation_v2(const Host& host) {
    auto* t   = reinterpret_cast<Type*>(ggml_backend_dev_buffer_type(host.cpu));
    host_type = t->iface;
    kv_type   = {{kv_name, kv_alloc, kv_alignment, nullptr, nullptr, kv_is_host}, host.cpu, nullptr};
    set_kv_buffer_type(reinterpret_cast<ggml_backend_buffer_type_t>(&kv_type));
    t->iface.get_alloc_size = get_alloc_size;
    t->iface.alloc_buffer   = alloc_buffer;
}

} // namespace tightkv
