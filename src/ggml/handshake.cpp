// Version and layout checks against the host: what is reached through our layouts must equal what the public functions say. Structs that
// differ between the two known versions are told apart first by the version number and the exported functions.
#include "ggml/handshake.h"

#include <dlfcn.h>

#include <cstring>

#include "ggml.h"
#include "ggml/abi.h"

namespace tightkv {

namespace {

constexpr const char* kTestedVersions[] = {"0.25.3", "0.26.0"};

template <class Interface> bool buffer_type_matches(ggml_backend_buffer_type_t handle) {
    const auto* t = reinterpret_cast<const abi::BufferType<Interface>*>(handle);
    // On the CPU these are null in every version seen. In the other version's layout they would land on functions.
    if (t->iface.get_max_size || t->iface.get_alloc_size || !t->iface.is_host || !t->iface.get_alignment || !t->iface.alloc_buffer)
        return false;
    return t->iface.get_name(handle) == ggml_backend_buft_name(handle) &&
           t->iface.get_alignment(handle) == ggml_backend_buft_get_alignment(handle) &&
           t->iface.is_host(handle) == ggml_backend_buft_is_host(handle);
}

// The tensor struct is public but compiled in: the host must agree on its size and on the names of what we use.
std::string check_tensors() {
    constexpr size_t kObjectHeader = 32; // struct ggml_object, four words
    if (ggml_tensor_overhead() != sizeof(ggml_tensor) + kObjectHeader) return "its tensors have another size";
    const std::pair<ggml_op, const char*> ops[] = {{GGML_OP_SET_ROWS, "SET_ROWS"}, {GGML_OP_FLASH_ATTN_EXT, "FLASH_ATTN_EXT"},
                                                   {GGML_OP_CUSTOM, "CUSTOM"},     {GGML_OP_VIEW, "VIEW"},
                                                   {GGML_OP_MUL_MAT, "MUL_MAT"},   {GGML_OP_NONE, "NONE"}};
    for (const auto& [op, name] : ops)
        if (std::strcmp(ggml_op_name(op), name) != 0) return std::string("its operation codes differ (") + name + ")";
    if (std::strcmp(ggml_type_name(GGML_TYPE_F16), "f16") != 0) return "its type codes differ";
    return {};
}

// A backend and a buffer made for the purpose: what follows their function tables must stand where our layouts say.
std::string check_made_objects(ggml_backend_dev_t cpu) {
    std::string          why;
    const ggml_backend_t backend = ggml_backend_dev_init(cpu, nullptr);
    if (!backend) return "the host makes no CPU backend";
    if (abi::layout(backend)->device != ggml_backend_get_device(backend)) why = "the backend has another layout";
    ggml_backend_free(backend);
    if (!why.empty()) return why;
    const ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(cpu), 64);
    if (!buffer) return "the host makes no buffer";
    if (abi::layout(buffer)->buft != ggml_backend_buffer_get_type(buffer) ||
        abi::layout(buffer)->size != ggml_backend_buffer_get_size(buffer))
        why = "the buffer has another layout";
    ggml_backend_buffer_free(buffer);
    return why;
}

} // namespace

std::string handshake(Host& host) {
    host.version = ggml_version();
    for (const char* v : kTestedVersions) host.tested |= host.version == v;
    host.cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!host.cpu) return "the host has no CPU device (yet)";
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(host.cpu);
    host.api                     = abi::layout(reg)->api_version;
    if (host.api != 2 && host.api != 3) return "backend API " + std::to_string(host.api) + " is unknown; this adapter knows 2 and 3";
    const bool has_alloc_n = dlsym(RTLD_DEFAULT, "ggml_backend_buft_alloc_buffer_n") != nullptr;
    if (has_alloc_n != (host.api == 3)) return "the host's version and its exported functions contradict each other";
    if (std::string why = check_tensors(); !why.empty()) return why;

    const abi::Registry* r = abi::layout(reg);
    if (r->iface.get_name(reg) != ggml_backend_reg_name(reg) || r->iface.get_device_count(reg) != ggml_backend_reg_dev_count(reg))
        return "the backend registry has another layout";
    const abi::Device* d = abi::layout(host.cpu);
    if (d->reg != reg || d->iface.get_name(host.cpu) != ggml_backend_dev_name(host.cpu) || !d->iface.init_backend ||
        !d->iface.supports_op || !d->iface.supports_buft)
        return "the device has another layout";
    const ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(host.cpu);
    if (!(host.api == 2 ? buffer_type_matches<abi::BufferTypeInterfaceV2>(buft) : buffer_type_matches<abi::BufferTypeInterfaceV3>(buft)))
        return "the buffer type has another layout";
    return check_made_objects(host.cpu);
}

} // namespace tightkv
