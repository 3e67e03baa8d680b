// libtightkv-preload.so: loads the adapter into programs that never look at GGML_BACKEND_PATH (linked-in backends, Python bindings).
//
// It stands before ggml_backend_reg_count, which libllama calls through the PLT whenever it initialises or loads a model. At the first call
// that finds backends registered it asks the host itself to load the adapter. Knows no ggml header; needs the C library only.
#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Search {
    const char *library, *symbol;
    void*       found;
};

// The symbol in a library that is already loaded, by the start of its file name. The library moves to the global scope on the way: a
// program that dlopens it locally (Python's ctypes) hides from the adapter what the adapter needs.
void* find(const char* library, const char* symbol) {
    Search search{library, symbol, nullptr};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto*       s    = static_cast<Search*>(data);
            const char* path = info->dlpi_name ? info->dlpi_name : "";
            const char* name = std::strrchr(path, '/');
            name             = name ? name + 1 : path;
            if (std::strncmp(name, s->library, std::strlen(s->library)) != 0) return 0;
            if (void* handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL)) s->found = dlsym(handle, s->symbol);
            return s->found ? 1 : 0;
        },
        &search);
    return search.found;
}

} // namespace

extern "C" __attribute__((visibility("default"))) size_t ggml_backend_reg_count(void) {
    static auto* const real = reinterpret_cast<size_t (*)()>(find("libggml.so", "ggml_backend_reg_count"));
    if (!real) return 0;
    const size_t             n = real();
    static std::atomic<bool> tried{false};
    const char* const        adapter = std::getenv("GGML_BACKEND_PATH");
    if (n == 0 || !adapter || !*adapter || tried.exchange(true)) return n; // 0: dynamic backends come later, and bring us along
    find("libggml-base.so", "ggml_version");
    const auto reg_by_name = reinterpret_cast<void* (*)(const char*)>(find("libggml.so", "ggml_backend_reg_by_name"));
    if (reg_by_name && reg_by_name("tightkv")) return n; // the host has loaded it already
    const auto load = reinterpret_cast<void* (*)(const char*)>(find("libggml.so", "ggml_backend_load"));
    if (!load) {
        std::fprintf(stderr, "tightkv: inactive, the host runs stock: this ggml has no ggml_backend_load\n");
        return n;
    }
    load(adapter); // says itself what it found
    return real();
}
