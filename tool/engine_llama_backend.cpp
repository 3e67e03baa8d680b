#include <cstdlib>

#include "engine_llama_private.h"
#include "errors.h"

namespace tightkv::tool {

ggml_backend_t cpu_backend(int threads) {
    static const bool loaded = [] { // plug-in builds of llama.cpp have their CPU backend in a file of its own
        if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) return true;
        unsetenv("GGML_BACKEND_PATH"); // not with our adapter in it
        ggml_backend_load_all();
        return true;
    }();
    (void)loaded;
    ggml_backend_t const     backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    ggml_backend_dev_t const dev     = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!backend || !dev) throw failure("this llama.cpp has no CPU backend");
    void* const set = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    if (!set) throw failure("the CPU backend of this llama.cpp cannot be told how many threads to use");
    reinterpret_cast<ggml_backend_set_n_threads_t>(set)(backend, threads);
    return backend;
}

} // namespace tightkv::tool
