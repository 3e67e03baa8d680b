// The private half of ggml's backend interface, as this adapter needs it: layouts of the structs behind the opaque handles, for backend
// API 2 and 3. Facts of ggml-backend-impl.h, declared here so that one library serves both; handshake.cpp checks them at run time
// before anything is touched. Between 2 and 3 only the buffer type changed (two optional functions in the middle).
#pragma once
#include <cstddef>
#include <cstdint>

#include "ggml-backend.h"

namespace tightkv::abi {

struct BufferInterface {
    void (*free_buffer)(ggml_backend_buffer_t);
    void* (*get_base)(ggml_backend_buffer_t);
    ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor*);
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor*, void*, size_t, size_t);
    void (*set_tensor_2d)(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d)(ggml_backend_buffer_t, const ggml_tensor*, void*, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor)(ggml_backend_buffer_t, const ggml_tensor*, ggml_tensor*);
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void (*reset)(ggml_backend_buffer_t);
};

struct Buffer {
    BufferInterface            iface;
    ggml_backend_buffer_type_t buft;
    void*                      context;
    size_t                     size;
    ggml_backend_buffer_usage  usage;
};

struct BufferTypeInterfaceV2 {
    const char* (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
    bool (*is_host)(ggml_backend_buffer_type_t);
};

struct BufferTypeInterfaceV3 {
    const char* (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    ggml_backend_buffer_t (*alloc_buffer_n)(ggml_backend_buffer_type_t, ggml_tensor**, int);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
    size_t (*get_alloc_size_n)(ggml_backend_buffer_type_t, ggml_tensor**, int);
    bool (*is_host)(ggml_backend_buffer_type_t);
};

template <class Interface> struct BufferType {
    Interface          iface;
    ggml_backend_dev_t device;
    void*              context;
};
using BufferTypeV2 = BufferType<BufferTypeInterfaceV2>;
using BufferTypeV3 = BufferType<BufferTypeInterfaceV3>;

struct BackendInterface {
    const char* (*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void* tensor_access[5]; // set/get_tensor_async, set/get_tensor_2d_async, cpy_tensor_async
    void (*synchronize)(ggml_backend_t);
    void* graph_plan[4]; // create, free, update, compute
    ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph*);
    void* rest[3]; // event_record, event_wait, graph_optimize
};

struct Backend {
    void*              guid;
    BackendInterface   iface;
    ggml_backend_dev_t device;
    void*              context;
};

struct DeviceInterface {
    const char* (*get_name)(ggml_backend_dev_t);
    const char* (*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t*, size_t*);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props*);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char*);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t, void*, size_t, size_t);
    bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor*);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    void* rest[4]; // offload_op, event_new, event_free, event_synchronize
};

struct Device {
    DeviceInterface    iface;
    ggml_backend_reg_t reg;
    void*              context;
};

struct Registry {
    int api_version;
    struct {
        const char* (*get_name)(ggml_backend_reg_t);
        size_t (*get_device_count)(ggml_backend_reg_t);
        ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
        void* (*get_proc_address)(ggml_backend_reg_t, const char*);
    } iface;
    void* context;
};

// Exported by every version seen, declared only in the private header.
extern "C" ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, BufferInterface, void* context, size_t size);

inline Device*   layout(ggml_backend_dev_t d) { return reinterpret_cast<Device*>(d); }
inline Backend*  layout(ggml_backend_t b) { return reinterpret_cast<Backend*>(b); }
inline Registry* layout(ggml_backend_reg_t r) { return reinterpret_cast<Registry*>(r); }
inline Buffer*   layout(ggml_backend_buffer_t b) { return reinterpret_cast<Buffer*>(b); }

} // namespace tightkv::abi
