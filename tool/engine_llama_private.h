// What the engine_llama*.cpp files share; nobody else includes it.
#pragma once
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

namespace tightkv::tool {

// What the host said in its log.
struct HostLog {
    struct Cache {
        unsigned cells; // per stream
        int      layers;
        unsigned streams;
    };
    std::string        last_error;
    std::vector<Cache> caches; // allocated since someone cleared this
};

HostLog&       host_messages();
std::string    why_host_failed(const std::string& otherwise); // the host's last error
ggml_type      stock_type(const std::string& name);
ggml_backend_t cpu_backend(int threads);         // the host's, to compute with; the caller frees it
void           set_cache_spec(const char* spec); // for caches allocated from now on; "off": the host's own

} // namespace tightkv::tool
