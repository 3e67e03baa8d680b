// libggml-tightkv.so: the entry points the host looks for, and what the outside can ask for by name.
//
// The host loads us through GGML_BACKEND_PATH (or the preload library, preload.cpp). We register a backend without devices and, if the
// handshake passes, interpose on the CPU device (hooks.cpp). Variables, all read once at initialisation:
//   TIGHTKV        cache specification, or "off": hooks in place, caches of the host until someone sets a specification
//   TIGHTKV_STATS  1: counts per operation on stderr at exit
//   TIGHTKV_QUIET  1: no lines about what works as it should
//   TIGHTKV_ISA    kernel level (cpu/kernel_table.h)
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cpu/kernel_table.h"
#include "ggml/guard.h"
#include "ggml/hooks.h"
#include "ggml/kv_buffer.h"
#include "ggml/model_profile.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

std::string handshake_sentence = "not yet tried";

// "" on success.
std::string set_cache_spec(const char* text) {
    if (!text || std::strcmp(text, "off") == 0) return set_active_spec(std::nullopt), std::string();
    CacheSpec spec;
    if (const Status s = parse_cache_spec(text, spec); !s.ok()) return s.message();
    if (const Status s = load_profile(spec); !s.ok()) return s.message();
    set_active_spec(spec);
    return {};
}

// ---- functions by name: ggml_backend_reg_get_proc_address(reg, "tightkv_…")

// Specification for caches allocated from now on ("off": the host's own). Null on success, else the error; valid until the thread's next
// call.
const char* proc_set_cache_spec(const char* text) {
    static thread_local std::string error;
    return guarded<const char*>("out of memory", [&] {
        error = kv_buffer_type() ? set_cache_spec(text) : "the adapter is inactive: TIGHTKV was not set when it was loaded";
        return error.empty() ? nullptr : error.c_str();
    });
}
const char* proc_stats_json() {
    static thread_local std::string json;
    return guarded<const char*>("{}", [&] { return (json = stats_json()).c_str(); });
}
const char* proc_handshake() { return handshake_sentence.c_str(); }
const char* proc_version() { return TIGHTKV_VERSION; }

const char*        reg_name(ggml_backend_reg_t) { return "tightkv"; }
size_t             reg_device_count(ggml_backend_reg_t) { return 0; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) { return nullptr; }
void*              reg_proc(ggml_backend_reg_t, const char* name) {
                 if (std::strcmp(name, "tightkv_set_cache_spec") == 0) return reinterpret_cast<void*>(proc_set_cache_spec);
    if (std::strcmp(name, "tightkv_stats_json") == 0) return reinterpret_cast<void*>(proc_stats_json);
    if (std::strcmp(name, "tightkv_handshake") == 0) return reinterpret_cast<void*>(proc_handshake);
    if (std::strcmp(name, "tightkv_version") == 0) return reinterpret_cast<void*>(proc_version);
    return nullptr;
}

abi::Registry registry{0, {reg_name, reg_device_count, reg_device, reg_proc}, nullptr};

void report_at_exit() {
    guarded([] { say("stats " + stats_json()); });
}

// Null when the host is to run stock.
ggml_backend_reg_t initialize() {
    Host        host;
    std::string why = handshake(host);
    if (why.empty() && !custom_ops_work()) why = "its custom operations have another layout";
    if (!why.empty()) {
        handshake_sentence = "refused: " + why;
        say("inactive, the host runs stock: " + why + " (host ggml " + host.version + ")");
        return nullptr;
    }
    handshake_sentence = "ggml " + host.version + ", backend API " + std::to_string(host.api) + ", " +
                         (host.tested ? "a tested version" : "not a tested version, but its layout is a known one");
    registry.api_version          = host.api;
    const ggml_backend_reg_t reg  = reinterpret_cast<ggml_backend_reg_t>(&registry);
    const char* const        text = std::getenv("TIGHTKV");
    if (!text || !*text) {
        say("inactive, the host runs stock: TIGHTKV is not set (for example TIGHTKV=turbo4)");
        return reg;
    }
    if (const std::string error = set_cache_spec(text); !error.empty()) {
        say("inactive, the host runs stock: TIGHTKV: " + error);
        return reg;
    }
    if (const std::string complaint = isa_complaint(); !complaint.empty()) say(complaint);
    install_hooks(host);
    if (const char* s = std::getenv("TIGHTKV_STATS"); s && std::strcmp(s, "1") == 0) std::atexit(report_at_exit);
    const auto spec = active_spec();
    inform("active, version " TIGHTKV_VERSION ", cache " + (spec ? spec->to_string() : std::string("off")) + ", kernels " + kernels().name +
           ", host " + handshake_sentence);
    return reg;
}

} // namespace

} // namespace tightkv

extern "C" {

__attribute__((visibility("default"))) int ggml_backend_score(void) { return 1; }

// Idempotent: the host may load us twice, and every call must answer the same.
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    static std::once_flag     once;
    static ggml_backend_reg_t reg = nullptr;
    tightkv::guarded([] { std::call_once(once, [] { reg = tightkv::initialize(); }); }); // nothing of ours may end the host
    return reg;
}
}
