// The host, the adapter in it, and models.
#include "engine_llama.h"

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "engine_llama_private.h"
#include "errors.h"
#include "install_paths.h"

namespace tightkv::tool {

namespace {

struct Adapter {
    const char* (*set_cache_spec)(const char*) = nullptr;
    const char* (*stats_json)()                = nullptr;
    const char* (*handshake)()                 = nullptr;
    const char* (*version)()                   = nullptr; // adapters before it had one lack it
};

Adapter     adapter;
std::string adapter_problem = "the adapter was not loaded";
bool        verbose         = false;
HostLog     host_log;

// Keeps what we need from the host's messages and hides the rest.
void on_log(ggml_log_level level, const char* text, void*) {
    static ggml_log_level last = GGML_LOG_LEVEL_NONE;
    if (level != GGML_LOG_LEVEL_CONT) last = level;
    if (last == GGML_LOG_LEVEL_ERROR) {
        std::string line(text);
        while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
        if (!line.empty()) host_log.last_error = line;
    }
    // "llama_kv_cache: size = 11.25 MiB ( 512 cells, 30 layers, 1/1 seqs), K (f16): …", the last number counting streams: one line per
    // cache; models with a sliding window or with recurrent layers have several caches, or fewer cached layers than layers.
    unsigned cells = 0, streams = 0;
    int      layers = 0;
    if (const char* at = std::strstr(text, " MiB (");
        at && std::strstr(text, "llama_kv_cache") == text &&
        std::sscanf(at, " MiB (%u cells, %d layers, %*u/%u seqs", &cells, &layers, &streams) == 3)
        host_log.caches.push_back({cells, layers, streams});
    if (verbose) std::fputs(text, stderr);
}

template <class F> void find(ggml_backend_reg_t reg, const char* name, F*& f) {
    f = reinterpret_cast<F*>(ggml_backend_reg_get_proc_address(reg, name));
}

// "" where it is active, else why not. What refuses this host also says so itself, in a line of its own.
std::string load_adapter(const std::string& file) {
    std::error_code   ec;
    const std::string full = std::filesystem::canonical(file, ec).string(); // dlopen looks for bare names elsewhere
    if (ec) return fmt::format("adapter not found: {} ({}); build it, or name it with --adapter FILE", file, ec.message());
    const auto problem = [&](const std::string& why) {
        return fmt::format("{} is not active as adapter in this llama.cpp (ggml {}): {}", file, host_version(), why);
    };
    host_log.last_error.clear();
    const ggml_backend_reg_t reg = ggml_backend_load(full.c_str());
    if (!reg) return problem(why_host_failed("it refuses this host"));
    if (const std::string name = ggml_backend_reg_name(reg); name != "tightkv") return problem("it is another backend, " + name);
    Adapter found;
    find(reg, "tightkv_set_cache_spec", found.set_cache_spec);
    find(reg, "tightkv_stats_json", found.stats_json);
    find(reg, "tightkv_handshake", found.handshake);
    find(reg, "tightkv_version", found.version);
    if (!found.set_cache_spec || !found.stats_json || !found.handshake) return problem("it lacks functions of this version of tightkv");
    adapter = found;
    return {};
}

} // namespace

HostLog& host_messages() { return host_log; }

void set_cache_spec(const char* spec) {
    if (!adapter.set_cache_spec) return;
    if (const char* error = adapter.set_cache_spec(spec)) throw failure(fmt::format("the adapter refuses cache '{}': {}", spec, error));
}

void start_engine(const EngineOptions& options) {
    verbose = options.verbose;
    llama_log_set(on_log, nullptr);
    setenv("TIGHTKV", "off", 1);
    if (!verbose) setenv("TIGHTKV_QUIET", "1", 1); // the tool reports itself what is active
    unsetenv("TIGHTKV_STATS");                     // the report at exit is for `tightkv run`
    unsetenv("GGML_BACKEND_PATH");                 // the adapter is the one we load, and we want to know why where it cannot be
    ggml_backend_load_all();
    adapter_problem = load_adapter(options.adapter.empty() ? adapter_file() : options.adapter);
    if (!adapter_loaded() && options.need_adapter) throw failure(adapter_problem);
    llama_backend_init();
}

bool adapter_loaded() { return adapter.set_cache_spec != nullptr; }

AdapterCounts adapter_counts() {
    AdapterCounts c;
    if (!adapter_loaded()) return c;
    const auto j       = nlohmann::json::parse(adapter.stats_json());
    c.native_writes    = j.value("native_writes", int64_t{0});
    c.native_attention = j.value("native_attention", int64_t{0});
    c.generic_ops      = j.value("generic_ops", int64_t{0});
    c.fallback_ops     = j.value("fallback_ops", int64_t{0});
    c.refused_rows     = j.value("refused_rows", int64_t{0});
    c.cache_bytes      = j.value("cache_bytes", int64_t{0});
    return c;
}

std::string adapter_handshake() { return adapter_loaded() ? adapter.handshake() : adapter_problem; }

std::string adapter_version() { return adapter.version ? adapter.version() : "unknown"; }

std::string host_version() { return ggml_version(); }

ggml_type stock_type(const std::string& name) {
    for (int t = 0; t < GGML_TYPE_COUNT; t++)
        if (const char* n = ggml_type_name(static_cast<ggml_type>(t)); n && name == n) return static_cast<ggml_type>(t);
    throw failure(fmt::format("this llama.cpp has no type {}", name));
}

double stock_bits_per_value(const std::string& type) {
    const ggml_type t = stock_type(type);
    return 8.0 * static_cast<double>(ggml_type_size(t)) / static_cast<double>(ggml_blck_size(t));
}

// ---- models

namespace {

std::string meta(const llama_model* m, const std::string& key) {
    char buffer[256];
    return llama_model_meta_val_str(m, key.c_str(), buffer, sizeof buffer) >= 0 ? buffer : "";
}

int head_dim(const llama_model* m, const char* which) {
    const std::string value = meta(m, meta(m, "general.architecture") + ".attention." + which);
    if (!value.empty()) return std::atoi(value.c_str());
    const int heads = llama_model_n_head(m);
    return heads > 0 ? llama_model_n_embd(m) / heads : 0;
}

} // namespace

void Model::Free::operator()(llama_model* m) const { llama_model_free(m); }

Model::Model(const std::string& path) : path_(path) {
    if (::access(path.c_str(), R_OK) != 0) throw failure(fmt::format("cannot read model {}: {}", path, std::strerror(errno)));
    host_log.last_error.clear();
    model_.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!model_) throw failure(fmt::format("cannot load model {}: {}", path, why_host_failed("not a GGUF file llama.cpp can use")));
    if (llama_model_has_encoder(handle()) || llama_model_is_recurrent(handle()) || llama_model_is_diffusion(handle()))
        throw failure(fmt::format("model {} has no KV cache to measure; accepted: decoder-only transformers", path));
    head_dim_k_ = head_dim(handle(), "key_length");
    head_dim_v_ = head_dim(handle(), "value_length");
}

Model::~Model() = default;

int Model::n_ctx_train() const { return llama_model_n_ctx_train(handle()); }
int Model::n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(handle())); }
int Model::n_layer() const { return llama_model_n_layer(handle()); }
int Model::n_head_kv() const { return llama_model_n_head_kv(handle()); }

std::string Model::description() const {
    char buffer[128] = "";
    llama_model_desc(handle(), buffer, sizeof buffer);
    return buffer;
}

Token Model::bos() const {
    const llama_vocab* v = llama_model_get_vocab(handle());
    return llama_vocab_get_add_bos(v) ? llama_vocab_bos(v) : -1;
}

std::vector<Token> Model::tokenize(const std::string& text) const {
    if (text.size() > INT_MAX) throw failure("text is larger than 2 GiB");
    const llama_vocab* v = llama_model_get_vocab(handle());
    std::vector<Token> tokens(text.size() / 3 + 16);
    const auto         into = [&] {
        return llama_tokenize(v, text.data(), static_cast<int32_t>(text.size()), tokens.data(), static_cast<int32_t>(tokens.size()), true,
                                      false);
    };
    int n = into();
    if (n < 0) {
        if (n == INT_MIN) throw failure("text has too many tokens");
        tokens.resize(static_cast<size_t>(-n));
        n = into();
    }
    if (n < 0) throw failure("llama.cpp cannot tokenise this text");
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

std::string why_host_failed(const std::string& otherwise) { return host_log.last_error.empty() ? otherwise : host_log.last_error; }

} // namespace tightkv::tool
