// Contexts: one KV cache each, tokens in, logits out.
#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "cache/profile.h"
#include "engine_llama.h"
#include "engine_llama_private.h"
#include "engine_llama_rows.h"
#include "errors.h"
#include "interrupt.h"

namespace tightkv::tool {

namespace {

bool stop_wanted(void*) { return interrupted(); }

struct Batch {
    llama_batch b;
    explicit Batch(size_t n) : b(llama_batch_init(static_cast<int32_t>(std::max<size_t>(n, 1)), 0, 1)) {}
    ~Batch() { llama_batch_free(b); }
    Batch(const Batch&)            = delete;
    Batch& operator=(const Batch&) = delete;
};

// Fields that not every llama.cpp has.
template <class P> void limit_outputs(P& p, int outputs) {
    if constexpr (requires { p.n_outputs_max; }) p.n_outputs_max = static_cast<uint32_t>(outputs);
}

} // namespace

void require_head_dim(const Model& m, const CacheChoice& cache) {
    if (cache.stock) return;
    for (const int d : {m.head_dim_k(), m.head_dim_v()})
        if (!valid_head_dim(d))
            throw failure(fmt::format("cache '{}' cannot be used with {}: its head_dim is {}; accepted: multiples of 32 from {} to {}",
                                      cache.name, m.path(), d, kMinHeadDim, kMaxHeadDim));
    require_profile(m, cache);
}

void Context::Free::operator()(llama_context* c) const { llama_free(c); }

Context::Context(const Model& model, const CacheChoice& cache, const ContextOptions& o) : model_(model), cache_(cache) {
    require_head_dim(model, cache);
    llama_context_params p = llama_context_default_params();
    p.n_ctx                = static_cast<uint32_t>(o.unified ? o.tokens : o.tokens * o.sequences);
    p.n_batch              = static_cast<uint32_t>(o.batch);
    p.n_ubatch             = static_cast<uint32_t>(o.batch);
    p.n_seq_max            = static_cast<uint32_t>(o.sequences);
    p.n_threads            = o.threads;
    p.n_threads_batch      = o.threads;
    p.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.kv_unified           = o.unified;
    p.swa_full             = true; // every layer keeps every token: the same cells for every model
    p.no_perf              = true;
    p.abort_callback       = stop_wanted;
    p.type_k = p.type_v = cache.stock ? stock_type(cache.name) : GGML_TYPE_F16;
    if (o.observer) {
        if (cache.name != "f16") throw failure(fmt::format("rows of cache '{}' cannot be watched; accepted: f16", cache.name));
        tap_                = std::make_unique<RowTap>(*o.observer, model.head_dim_k(), model.head_dim_v());
        p.cb_eval           = RowTap::evaluate;
        p.cb_eval_user_data = tap_.get();
    }
    limit_outputs(p, std::max(o.outputs, o.sequences)); // the host wants one per sequence

    HostLog& log = host_messages();
    log.caches.clear();
    log.last_error.clear();
    const int64_t before = adapter_counts().cache_bytes;
    set_cache_spec(cache.stock ? "off" : cache.spec.to_string().c_str());
    context_.reset(llama_init_from_model(model.handle(), p));
    set_cache_spec("off");
    if (!context_)
        throw failure(
            fmt::format("no context with cache '{}' for {}: {}", cache.name, model.path(), why_host_failed("llama.cpp says no more")));

    double cells = 0;
    for (const HostLog::Cache& c : log.caches) {
        cells += static_cast<double>(c.cells) * c.streams * c.layers;
        cache_layers_ += c.layers;
        cells_per_stream_ = std::max(cells_per_stream_, static_cast<int64_t>(c.cells));
    }
    if (log.caches.empty()) { // a host whose log reads otherwise
        cache_layers_ = model.n_layer();
        cells         = static_cast<double>(llama_n_ctx(context_.get())) * cache_layers_;
    }
    if (cells_per_stream_ == 0) cells_per_stream_ = llama_n_ctx(context_.get());
    const double values = cells * model.n_head_kv() * (model.head_dim_k() + model.head_dim_v());
    cache_bytes_ =
        cache.stock ? static_cast<int64_t>(values * stock_bits_per_value(cache.name) / 8) : adapter_counts().cache_bytes - before;
}

Context::~Context() = default;

double Context::bits_per_value() const {
    if (!cache_.stock && !cache_.spec.profile.empty()) {
        Profile p;
        if (const Status s = Profile::load(cache_.spec.profile, p); !s.ok()) throw failure(s.message());
        return tightkv::bits_per_value(cache_.spec, p, cells_per_stream_);
    }
    return cache_.stock ? stock_bits_per_value(cache_.name)
                        : cache_.spec.bits_per_value(cache_layers_, model_.head_dim_k(), model_.head_dim_v(), cells_per_stream_);
}

bool Context::decode(std::span<const BatchToken> tokens) {
    Batch        batch(tokens.size());
    llama_batch& b = batch.b;
    b.n_tokens     = static_cast<int32_t>(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++) {
        b.token[i]     = tokens[i].token;
        b.pos[i]       = tokens[i].position;
        b.n_seq_id[i]  = 1;
        b.seq_id[i][0] = tokens[i].sequence;
        b.logits[i]    = tokens[i].output;
    }
    const int64_t before = cache_.stock ? 0 : adapter_counts().native_attention;
    host_messages().last_error.clear();
    const auto start = std::chrono::steady_clock::now();
    const int  rc    = llama_decode(context_.get(), b);
    if (rc == 0) llama_synchronize(context_.get());
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!cache_.stock) native_attention_ += adapter_counts().native_attention - before;
    if (tap_) tap_->rethrow();
    if (interrupted()) return false;
    if (rc != 0)
        throw failure(
            fmt::format("llama_decode failed ({}) with cache '{}': {}", rc, cache_.name, why_host_failed("llama.cpp says no more")));
    return true;
}

std::span<const float> Context::logits(int index) const {
    const float* p = llama_get_logits_ith(context_.get(), index);
    if (!p) throw failure(fmt::format("no logits of token {} with cache '{}'", index, cache_.name));
    return {p, static_cast<size_t>(model_.n_vocab())};
}

void Context::clear() { llama_memory_clear(llama_get_memory(context_.get()), false); }

void Context::remove(int sequence, int from_position) {
    if (!llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, from_position, -1))
        throw failure(fmt::format("llama.cpp cannot remove tokens from cache '{}'", cache_.name));
}

void Context::share(int from_sequence, int to_sequence) {
    llama_memory_seq_cp(llama_get_memory(context_.get()), from_sequence, to_sequence, -1, -1);
}

std::vector<uint8_t> Context::save(int sequence) {
    std::vector<uint8_t> state(llama_state_seq_get_size(context_.get(), sequence));
    const size_t         n = llama_state_seq_get_data(context_.get(), state.data(), state.size(), sequence);
    if (n == 0) throw failure(fmt::format("llama.cpp cannot save cache '{}'", cache_.name));
    state.resize(n);
    return state;
}

void Context::restore(int sequence, std::span<const uint8_t> state) {
    host_messages().last_error.clear();
    if (llama_state_seq_set_data(context_.get(), state.data(), state.size(), sequence) == 0)
        throw failure(fmt::format("llama.cpp cannot restore cache '{}': {}", cache_.name, why_host_failed("llama.cpp says no more")));
}

int Context::next_position(int sequence) const { return llama_memory_seq_pos_max(llama_get_memory(context_.get()), sequence) + 1; }

void Context::set_threads(int threads) { llama_set_n_threads(context_.get(), threads, threads); }

int pick_threads(const Model& model, int cores) {
    constexpr int    kTokens = 4;   // the first warms up
    constexpr double kClear  = 1.3; // times faster
    const int        half    = cores / 2;
    if (half < 1) return cores;
    Context context(model, {.name = "f16", .stock = true, .spec = {}}, {.tokens = 64, .batch = 8, .outputs = 1, .threads = half});
    // Seconds of the tokens after the first; ends early once beyond `limit`.
    const auto time = [&](int threads, double limit) {
        context.set_threads(threads);
        double start = 0;
        for (int i = 0; i < kTokens; i++) {
            const BatchToken t{0, context.next_position(0), 0, true};
            if (!context.decode({&t, 1})) break;
            if (i == 0) start = context.seconds();
            if (i > 0 && context.seconds() - start > limit) break;
        }
        return context.seconds() - start;
    };
    const double few = time(half, 1e9);
    return time(cores, kClear * few) > kClear * few ? half : cores;
}

} // namespace tightkv::tool
