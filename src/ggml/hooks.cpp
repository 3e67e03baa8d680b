// Device hooks: backends get our graph_compute, ops and buffers of ours are claimed.
#include "ggml/hooks.h"

#include <atomic>
#include <mutex>

#include "ggml/guard.h"
#include "ggml/kv_buffer.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

std::mutex               spec_lock;
std::optional<CacheSpec> spec;

ggml_backend_dev_t                                         cpu = nullptr;
abi::DeviceInterface                                       host_device; // the host's own functions
std::atomic<ggml_status (*)(ggml_backend_t, ggml_cgraph*)> host_compute{nullptr};

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char* params) {
    ggml_backend_t b = host_device.init_backend(dev, params);
    if (b) {
        host_compute                        = abi::layout(b)->iface.graph_compute; // the same function for every CPU backend
        abi::layout(b)->iface.graph_compute = hooked_graph_compute;
    }
    return b;
}

bool touches_kv_buffer(const ggml_tensor* op) {
    if (in_kv_buffer(op)) return true;
    for (const ggml_tensor* s : op->src)
        if (s && in_kv_buffer(s)) return true;
    return false;
}

bool supports_op(ggml_backend_dev_t dev, const ggml_tensor* op) {
    if (!touches_kv_buffer(op)) return host_device.supports_op(dev, op);
    guarded([&] { observe(op); }); // the graph will tell again when it runs
    return true;                   // the CPU is the last resort for memory of ours: what we do not know runs generically
}

bool supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == kv_buffer_type() || host_device.supports_buft(dev, buft);
}

} // namespace

void set_active_spec(const std::optional<CacheSpec>& s) {
    const std::lock_guard guard(spec_lock);
    spec = s;
}
std::optional<CacheSpec> active_spec() {
    const std::lock_guard guard(spec_lock);
    return spec;
}

ggml_backend_t new_plain_backend() { return host_device.init_backend(cpu, nullptr); }
ggml_status    host_graph_compute(ggml_backend_t b, ggml_cgraph* g) { return host_compute.load(std::memory_order_relaxed)(b, g); }

void install_hooks(const Host& host) {
    cpu         = host.cpu;
    host_device = abi::layout(cpu)->iface;
    if (host.api == 2) install_allocation_v2(host);
    else install_allocation_v3(host);
    abi::DeviceInterface& d = abi::layout(cpu)->iface;
    d.init_backend          = init_backend;
    d.supports_op           = supports_op;
    d.supports_buft         = supports_buft;
}

} // namespace tightkv
