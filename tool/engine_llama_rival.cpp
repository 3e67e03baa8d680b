#include "engine_llama_rival.h"

#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

#include "engine_llama_private.h"
#include "errors.h"

namespace tightkv::tool {

namespace {

// Structs that the library returns and takes by value. They are longer than what is declared here, so room follows that the library fills
// and reads as far as it knows: both calling conventions (x86-64, aarch64) pass structs of this size in memory.
struct ModelParams {
    unsigned char bytes[2048];
};
struct ContextParams {
    uint32_t      seed, n_ctx, n_batch, n_ubatch, n_seq_max, n_threads, n_threads_batch;
    int32_t       max_extra_alloc, worst_case_tokens;
    int32_t       rope_scaling_type, pooling_type, attention_type;
    float         rope_freq_base, rope_freq_scale, yarn[4];
    uint32_t      yarn_orig_ctx;
    float         defrag_thold;
    void *        cb_eval, *cb_eval_user_data;
    int32_t       type_k, type_v;
    unsigned char bytes[2048];
};
struct Batch {
    llama_batch   b; // its beginning is as here
    unsigned char bytes[128];
};

bool as_expected(const ContextParams& p) {
    return p.seed == 0xffffffff && p.n_ctx == 512 && p.n_batch == 2048 && p.n_ubatch == 512 && p.n_seq_max == 1 && p.rope_freq_base == 0 &&
           !p.cb_eval && !p.cb_eval_user_data && p.type_k == GGML_TYPE_F16 && p.type_v == GGML_TYPE_F16;
}

} // namespace

struct RivalContext::Library {
    void (*log_set)(ggml_log_callback, void*);
    void (*backend_init)();
    ModelParams (*model_default_params)();
    ContextParams (*context_default_params)();
    llama_model* (*model_load_from_file)(const char*, ModelParams);
    llama_context* (*init_from_model)(llama_model*, ContextParams);
    void (*free_model)(llama_model*);
    void (*free)(llama_context*);
    int32_t (*n_vocab)(const llama_model*);
    Batch (*batch_init)(int32_t, int32_t, int32_t);
    void (*batch_free)(Batch);
    int32_t (*decode)(llama_context*, Batch);
    void (*synchronize)(llama_context*);
    float* (*get_logits_ith)(llama_context*, int32_t);
    bool (*kv_cache_seq_rm)(llama_context*, int32_t, int32_t, int32_t);
    void (*kv_cache_seq_cp)(llama_context*, int32_t, int32_t, int32_t, int32_t);
    int32_t (*kv_cache_seq_pos_max)(llama_context*, int32_t);
    // The last argument (flags) is new; where it is not known yet it is not looked at.
    size_t (*state_seq_get_size)(llama_context*, int32_t, uint32_t);
    size_t (*state_seq_get_data)(llama_context*, uint8_t*, size_t, int32_t, uint32_t);
    size_t (*state_seq_set_data)(llama_context*, const uint8_t*, size_t, int32_t, uint32_t);

    std::string log;

    explicit Library(const std::string& folder) {
        const std::string file   = folder + "/libllama.so";
        void* const       handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND); // its own functions before ours
        if (!handle) throw failure(fmt::format("cannot load {}: {}", file, dlerror()));
        const auto find = [&](auto& f, const char* function) {
            f = reinterpret_cast<std::remove_reference_t<decltype(f)>>(dlsym(handle, function));
            if (!f) throw failure(fmt::format("{} has no function {}: it is no ik_llama.cpp of 2026", file, function));
        };
#define TIGHTKV_FIND(name) find(name, "llama_" #name);
        TIGHTKV_FIND(log_set)
        TIGHTKV_FIND(backend_init)
        TIGHTKV_FIND(model_default_params)
        TIGHTKV_FIND(context_default_params)
        TIGHTKV_FIND(model_load_from_file)
        TIGHTKV_FIND(init_from_model)
        TIGHTKV_FIND(free_model)
        TIGHTKV_FIND(free)
        TIGHTKV_FIND(n_vocab)
        TIGHTKV_FIND(batch_init)
        TIGHTKV_FIND(batch_free)
        TIGHTKV_FIND(decode)
        TIGHTKV_FIND(synchronize)
        TIGHTKV_FIND(get_logits_ith)
        TIGHTKV_FIND(kv_cache_seq_rm)
        TIGHTKV_FIND(kv_cache_seq_cp)
        TIGHTKV_FIND(kv_cache_seq_pos_max)
        TIGHTKV_FIND(state_seq_get_size)
        TIGHTKV_FIND(state_seq_get_data)
        TIGHTKV_FIND(state_seq_set_data)
#undef TIGHTKV_FIND
        log_set([](ggml_log_level, const char* text, void* to) { *static_cast<std::string*>(to) += text; }, &log);
        backend_init();
    }
};

void RivalContext::fail(const std::string& what) const {
    const size_t      end   = lib_->log.find_last_not_of(" \n");
    const size_t      start = end == std::string::npos ? end : lib_->log.rfind('\n', end);
    const std::string last  = end == std::string::npos ? "it says no more" : lib_->log.substr(start + 1, end - start);
    throw failure(fmt::format("{}: {}: {}", name_, what, last));
}

RivalContext::RivalContext(const RivalContextOptions& o) : lib_(std::make_unique<Library>(o.folder)), name_(o.name) {
    ContextParams p = lib_->context_default_params();
    if (!as_expected(p)) throw failure(fmt::format("{}: its llama_context_params are not those of an ik_llama.cpp of 2026", name_));
    model_ = lib_->model_load_from_file(o.model.c_str(), lib_->model_default_params());
    if (!model_) fail("cannot load " + o.model);
    p.n_ctx    = static_cast<uint32_t>(o.cells);
    p.n_batch  = static_cast<uint32_t>(o.batch);
    p.n_ubatch = p.n_batch, p.n_seq_max = static_cast<uint32_t>(o.sequences);
    p.n_threads = p.n_threads_batch = static_cast<uint32_t>(o.threads);
    p.type_k = p.type_v = stock_type(o.type);
    lib_->log.clear();
    context_ = lib_->init_from_model(model_, p);
    if (!context_) fail("no context");
    const std::string& log = lib_->log;
    const size_t       at  = log.find("KV self size");
    double             mib = 0;
    if (at == std::string::npos || std::sscanf(log.c_str() + at, "KV self size = %lf MiB", &mib) != 1 ||
        log.find(fmt::format("K ({})", o.type), at) == std::string::npos ||
        log.find(fmt::format("V ({})", o.type), at) == std::string::npos || log.find("flash_attn    = 1") == std::string::npos)
        throw failure(fmt::format("{}: its log does not confirm flash attention on a cache of type {}", name_, o.type));
    cache_bytes_ = mib * 1048576;
}

RivalContext::~RivalContext() {
    if (context_) lib_->free(context_);
    if (model_) lib_->free_model(model_);
}

bool RivalContext::decode(std::span<const BatchToken> tokens) {
    Batch batch = lib_->batch_init(static_cast<int32_t>(tokens.size()), 0, 1);

    batch.b.n_tokens = static_cast<int32_t>(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++) {
        batch.b.token[i]     = tokens[i].token;
        batch.b.pos[i]       = tokens[i].position;
        batch.b.n_seq_id[i]  = 1;
        batch.b.seq_id[i][0] = tokens[i].sequence;
        batch.b.logits[i]    = tokens[i].output;
    }
    const auto start = std::chrono::steady_clock::now();
    const int  rc    = lib_->decode(context_, batch);
    if (rc == 0) lib_->synchronize(context_);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    lib_->batch_free(batch);
    if (rc != 0) fail(fmt::format("llama_decode failed ({})", rc));
    return true;
}

std::span<const float> RivalContext::logits(int index) const {
    const float* const p = lib_->get_logits_ith(context_, index);
    if (!p) fail("no logits");
    return {p, static_cast<size_t>(lib_->n_vocab(model_))};
}

void RivalContext::remove(int sequence, int from_position) {
    if (!lib_->kv_cache_seq_rm(context_, sequence, from_position, -1)) fail("cannot remove tokens");
}

void RivalContext::share(int from, int to) { lib_->kv_cache_seq_cp(context_, from, to, -1, -1); }

std::vector<uint8_t> RivalContext::save(int sequence) {
    std::vector<uint8_t> state(lib_->state_seq_get_size(context_, sequence, 0));
    const size_t         n = lib_->state_seq_get_data(context_, state.data(), state.size(), sequence, 0);
    if (n == 0) fail("cannot save a sequence");
    state.resize(n);
    return state;
}

void RivalContext::restore(int sequence, std::span<const uint8_t> state) {
    if (lib_->state_seq_set_data(context_, state.data(), state.size(), sequence, 0) == 0) fail("cannot restore a sequence");
}

int RivalContext::next_position(int sequence) const { return lib_->kv_cache_seq_pos_max(context_, sequence) + 1; }

} // namespace tightkv::tool
