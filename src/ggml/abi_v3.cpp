// Backend API 3: the host hands over the whole list of tensors to allocate, so the cache is recognised by name.
#include <algorithm>
#include <vector>

#include "ggml-alloc.h"
#include "ggml/guard.h"
#include "ggml/hooks.h"
#include "ggml/kv_buffer.h"
#include "ggml/model_profile.h"
#include "ggml/other_types.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

using Type = abi::BufferTypeV3;

abi::BufferTypeInterfaceV3 host_type;
Type                       kv_type;

const char* kv_name(ggml_backend_buffer_type_t) { return "tightkv"; }
bool        kv_is_host(ggml_backend_buffer_type_t) { return false; } // true would let stock kernels read packed rows as f16
size_t kv_alignment(ggml_backend_buffer_type_t) { return host_type.get_alignment(reinterpret_cast<ggml_backend_buffer_type_t>(&kv_type)); }
ggml_backend_buffer_t kv_alloc(ggml_backend_buffer_type_t, size_t size) {
    return guarded<ggml_backend_buffer_t>(nullptr, [&] { return allocate_kv_buffer(size, 0, {}, {}); });
}

bool needs_room(const ggml_tensor* t) { return !t->view_src && !t->data; }

std::vector<const ggml_tensor*> caches_in(ggml_tensor** tensors, int n) {
    std::vector<const ggml_tensor*> caches;
    for (int i = 0; i < n; i++)
        if (needs_room(tensors[i]) && is_cache_tensor(tensors[i])) caches.push_back(tensors[i]);
    return caches;
}

size_t padded_size(ggml_backend_buffer_type_t buft, const ggml_tensor* t) {
    return GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft));
}

// The host's default, which is not exported: one buffer (the CPU has no size limit), tensors one after the other, views after their roots.
ggml_backend_buffer_t place(ggml_backend_buffer_t b, ggml_tensor** tensors, int n) {
    if (!b) return nullptr;
    ggml_tallocr room = ggml_tallocr_new(b);
    for (int i = 0; i < n; i++) {
        ggml_tensor* t = tensors[i];
        ggml_status  s = GGML_STATUS_SUCCESS;
        if (needs_room(t)) s = ggml_tallocr_alloc(&room, t);
        else if (t->view_src && !t->buffer) s = ggml_backend_view_init(t);
        if (s == GGML_STATUS_SUCCESS) continue;
        for (int k = 0; k <= i; k++) // as they came, so that somebody else may place them
            if (tensors[k]->buffer == b) tensors[k]->buffer = nullptr, tensors[k]->data = nullptr;
        ggml_backend_buffer_free(b);
        return nullptr;
    }
    return b;
}

size_t padded_size(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n) {
    size_t size = 0;
    for (int i = 0; i < n; i++)
        if (needs_room(tensors[i])) size += padded_size(buft, tensors[i]);
    return size;
}

void tell_other_types(ggml_tensor** tensors, int n) {
    OtherTypes others;
    for (int i = 0; i < n; i++)
        if (needs_room(tensors[i])) others.look_at(tensors[i]);
    others.tell();
}

// Null: nothing to compress.
ggml_backend_buffer_t alloc_compressed(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n) {
    const auto spec = active_spec();
    if (!spec) return nullptr;
    tell_other_types(tensors, n);
    const auto caches = caches_in(tensors, n);
    if (caches.empty() || !profile_fits(caches, *spec)) return nullptr;
    const auto n_tensors = static_cast<size_t>(std::count_if(tensors, tensors + n, needs_room));
    if (ggml_backend_buffer_t b = place(allocate_kv_buffer(padded_size(buft, tensors, n), n_tensors, caches, *spec), tensors, n)) return b;
    say("no room for the compressed cache: left to the host as f16");
    return nullptr;
}

ggml_backend_buffer_t alloc_buffer_n(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n) {
    if (ggml_backend_buffer_t b = guarded<ggml_backend_buffer_t>(nullptr, [&] { return alloc_compressed(buft, tensors, n); })) return b;
    if (host_type.alloc_buffer_n) return host_type.alloc_buffer_n(buft, tensors, n);
    const size_t size = padded_size(buft, tensors, n);
    return size == 0 ? nullptr : place(ggml_backend_buft_alloc_buffer(buft, size), tensors, n);
}

size_t get_alloc_size_n(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n) {
    const size_t packed = guarded(size_t{0}, [&] {
        const auto spec   = active_spec();
        const auto caches = spec ? caches_in(tensors, n) : std::vector<const ggml_tensor*>{};
        return caches.empty() || !profile_fits(caches, *spec) ? 0 : planned_bytes(caches, *spec);
    });
    if (packed == 0) return host_type.get_alloc_size_n ? host_type.get_alloc_size_n(buft, tensors, n) : padded_size(buft, tensors, n);
    size_t size = packed;
    for (int i = 0; i < n; i++)
        if (needs_room(tensors[i]) && !is_cache_tensor(tensors[i])) size += padded_size(buft, tensors[i]);
    return size;
}

} // namespace

void install_allocation_v3(const Host& host) {
    auto* t   = reinterpret_cast<Type*>(ggml_backend_dev_buffer_type(host.cpu));
    host_type = t->iface;
    kv_type   = {{kv_name, kv_alloc, nullptr, kv_alignment, nullptr, nullptr, nullptr, kv_is_host}, host.cpu, nullptr};
    set_kv_buffer_type(reinterpret_cast<ggml_backend_buffer_type_t>(&kv_type));
    t->iface.alloc_buffer_n   = alloc_buffer_n;
    t->iface.get_alloc_size_n = get_alloc_size_n;
}

} // namespace tightkv
