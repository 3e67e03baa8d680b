// libtightkv-preload.so: loads the adapter into programs that never look at GGML_BACKEND_PATH (linked-in backends, Python bindings).
//
// It stands before ggml_backend_reg_count, which libllama calls through the PLT whenever it initialises or loads a model. At the first call
// that finds backends registered it asks the host itself to load the adapter. Knows no ggml header; needs the C library only.
#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Search {
    const char* library;
    char        path[PATH_MAX];
};

// The symbol in a library that is already loaded, by the start of its file name. The library moves to the global scope on the way: a
// program that dlopens it locally (Python's ctypes) hides from the adapter what the adapter needs. Nothing is opened inside the callback,
// which holds a lock of the loader.
void* find(const char* library, const char* symbol) {
    Search    search{library, {}};
    const int found = dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto*       s    = static_cast<Search*>(data);
            const char* path = info->dlpi_name ? info->dlpi_name : "";
            const char* name = std::strrchr(path, '/');
            name             = name ? name + 1 : path;
            if (std::strncmp(name, s->library, std::strlen(s->library)) != 0 || std::strlen(path) >= sizeof s->path) return 0;
            std::strcpy(s->path, path);
            return 1;
        },
        &search);
    void* handle = found ? dlopen(search.path, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL) : nullptr;
    return handle ? dlsym(handle, symbol) : nullptr;
}

// The host's function; where it lies in no library of the expected name, whatever comes after us.
size_t (*host_reg_count())() {
    void* f = find("libggml.so", "ggml_backend_reg_count");
    return reinterpret_cast<size_t (*)()>(f ? f : dlsym(RTLD_NEXT, "ggml_backend_reg_count"));
}

} // namespace

extern "C" __attribute__((visibility("default"))) size_t ggml_backend_reg_count(void) {
    static auto* const real = host_reg_count();
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
