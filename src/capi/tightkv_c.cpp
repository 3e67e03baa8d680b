// The C API over the C++ library: argument checks, error texts, nothing else. No exception leaves this file.
#include <algorithm>
#include <cmath>
#include <new>

#include "cache/kv_cache.h"
#include "cache/read_path.h"
#include "capi/helper_threads.h"
#include "cpu/kernel_table.h"
#include "tightkv/tightkv.h"

using namespace tightkv;

struct tkv_cache {
    std::unique_ptr<KvCache> cache;
    mutable HelperThreads    helpers; // of tkv_attend
};

struct tkv_job {
    ExactMasks        masks; // job points to them
    AttentionJob      job;
    std::atomic<bool> failed{false};
};

namespace {

thread_local std::string last_error;

int fail(int code, std::string message) {
    last_error = std::move(message);
    return code;
}
int result(const Status& s) { return s.ok() ? TKV_OK : fail(static_cast<int>(s.code()), s.message()); }

// Runs f; what it throws (memory, at most) becomes an error code.
template <class F> int guarded(F f) {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return fail(TKV_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& e) {
        return fail(TKV_INTERNAL, e.what());
    }
}

// A format by name with a transform, for the row functions.
const Format* row_format(const char* name, int head_dim) {
    const Format* f = name ? find_format(name) : nullptr;
    if (!f || !f->transformed()) {
        fail(TKV_INVALID_ARGUMENT, std::string("no row format '") + (name ? name : "") +
                                       "'; accepted: turbo2, turbo3, turbo4, turbo8, turbo2t, turbo3t, turbo4t");
        return nullptr;
    }
    if (!valid_head_dim(head_dim)) {
        fail(TKV_INVALID_ARGUMENT, "head_dim " + std::to_string(head_dim) + " is not supported; accepted: multiples of 32 from 32 to 1024");
        return nullptr;
    }
    return f;
}

Status check_cells(const tkv_cache* c, int layer, int op, int stream, int64_t first, int64_t n) {
    if (!c) return invalid_argument("the cache is NULL");
    const CacheShape& s = c->cache->shape();
    if (layer < 0 || layer >= s.n_layers)
        return invalid_argument("layer " + std::to_string(layer) + " is outside 0 … " + std::to_string(s.n_layers - 1));
    if (op != TKV_K && op != TKV_V) return invalid_argument("the operand must be TKV_K or TKV_V");
    if (stream < 0 || stream >= s.n_streams)
        return invalid_argument("stream " + std::to_string(stream) + " is outside 0 … " + std::to_string(s.n_streams - 1));
    if (first < 0 || n < 0 || first > s.n_cells || n > s.n_cells - first)
        return invalid_argument("cells outside 0 … " + std::to_string(s.n_cells - 1));
    return {};
}

// The tokens of a batch: cells of the cache, none twice.
Status batch_of(const tkv_cache* c, const tkv_token* tokens, int64_t n, std::vector<KvCache::Token>& out) {
    if (Status s = check_cells(c, 0, TKV_K, 0, 0, 0); !s.ok()) return s;
    if (n < 0 || (n > 0 && !tokens)) return invalid_argument("n must not be negative and tokens not NULL");
    std::vector<std::pair<int, int64_t>> cells;
    for (int64_t i = 0; i < n; i++) {
        const tkv_token& t = tokens[i];
        if (Status s = check_cells(c, 0, TKV_K, t.stream, t.cell, 1); !s.ok())
            return invalid_argument("token " + std::to_string(i) + ": " + s.message());
        if (t.position < -1)
            return invalid_argument("token " + std::to_string(i) + ": position " + std::to_string(t.position) +
                                    " is none; accepted: 0 and above, or -1 where it is not known");
        cells.emplace_back(t.stream, t.cell);
        out.push_back({t.stream, t.cell, t.position});
    }
    std::sort(cells.begin(), cells.end());
    if (const auto twice = std::adjacent_find(cells.begin(), cells.end()); twice != cells.end())
        return invalid_argument("cell " + std::to_string(twice->second) + " of stream " + std::to_string(twice->first) +
                                " is given twice: a batch writes every cell once");
    return {};
}

Status arguments_of(const tkv_cache* c, int layer, const tkv_attention* a, AttentionArgs& out) {
    if (Status s = check_cells(c, layer, TKV_K, 0, 0, 0); !s.ok()) return s;
    if (!a) return invalid_argument("the attention arguments are NULL");
    if (a->mask_f32 && a->mask_f16) return invalid_argument("give mask_f32 or mask_f16, not both");
    if ((a->mask_f32 || a->mask_f16) && a->mask_stride < a->n_kv) return invalid_argument("mask_stride must be at least n_kv");
    if (!std::isfinite(a->scale) || !std::isfinite(a->softcap) || !std::isfinite(a->alibi_max_bias))
        return invalid_argument("scale, softcap and alibi_max_bias must be finite");
    const KvCache& cache = *c->cache;
    out.k = &cache.store(layer, Operand::K), out.v = &cache.store(layer, Operand::V);
    out.k_stream0 = out.v_stream0 = a->stream;
    out.n_streams = a->n_streams, out.n_kv_heads = cache.shape().n_kv_heads, out.n_heads = a->n_heads, out.n_tokens = a->n_tokens,
    out.n_kv           = a->n_kv;
    const auto strides = [&](int d) {
        const size_t row   = sizeof(float) * static_cast<size_t>(d);
        const size_t token = row * static_cast<size_t>(a->n_heads);
        return RowStrides{token, row, token * static_cast<size_t>(a->n_tokens)};
    };
    out.q = a->q, out.q_strides = strides(cache.shape().head_dim_k);
    out.out = a->out, out.out_strides = strides(cache.shape().head_dim_v);
    out.scale = a->scale, out.softcap = a->softcap, out.max_bias = a->alibi_max_bias, out.sinks = a->sinks,
    out.sparse_v     = c->cache->spec().sparse_v;
    out.mask_type    = a->mask_f16 ? MaskType::kF16 : a->mask_f32 ? MaskType::kF32 : MaskType::kNone;
    out.mask         = a->mask_f16 ? static_cast<const void*>(a->mask_f16) : a->mask_f32;
    const size_t row = static_cast<size_t>(a->mask_stride) * (a->mask_f16 ? 2 : 4);
    out.mask_strides = {row, 0, row * static_cast<size_t>(a->n_tokens)};
    return {};
}

} // namespace

const char* tkv_version(void) { return TIGHTKV_VERSION; }
int         tkv_format_version(void) { return kFormatVersion; }
const char* tkv_isa(void) { return kernels().name; }
int         tkv_set_isa(const char* name) {
            return guarded([&] { return result(set_isa(name ? name : "")); });
}
const char* tkv_last_error(void) { return last_error.c_str(); }

int         tkv_format_count(void) { return static_cast<int>(all_formats().size()); }
const char* tkv_format_name(int i) { return i >= 0 && i < tkv_format_count() ? all_formats()[static_cast<size_t>(i)].name : nullptr; }
size_t      tkv_row_bytes(const char* name, int head_dim) {
         const Format* f = name ? find_format(name) : nullptr;
         return f && valid_head_dim(head_dim) ? f->row_bytes(head_dim) : 0;
}
int tkv_encode_row(const char* name, int head_dim, const float* x, uint8_t* bytes, int* refused) {
    return guarded([&]() -> int {
        const Format* f = row_format(name, head_dim);
        if (!f) return TKV_INVALID_ARGUMENT;
        if (!x || !bytes) return fail(TKV_INVALID_ARGUMENT, "x and bytes must not be NULL");
        CodedRow        row;
        const RowStatus s = kernels().encode(*f, transform_for(head_dim), x, row);
        if (refused) *refused = s == RowStatus::kRefused;
        pack_row(*f, head_dim, row, bytes);
        return TKV_OK;
    });
}
int tkv_decode_row(const char* name, int head_dim, const uint8_t* bytes, float* x) {
    return guarded([&]() -> int {
        const Format* f = row_format(name, head_dim);
        if (!f) return TKV_INVALID_ARGUMENT;
        if (!x || !bytes) return fail(TKV_INVALID_ARGUMENT, "x and bytes must not be NULL");
        CodedRow row;
        unpack_row(*f, head_dim, bytes, row);
        kernels().decode(*f, transform_for(head_dim), row, x);
        return TKV_OK;
    });
}

tkv_cache_params tkv_cache_params_default(void) {
    tkv_cache_params p{};
    p.n_streams = 1;
    return p;
}
int tkv_cache_create(const char* text, const tkv_cache_params* p, tkv_cache** out) {
    if (!text || !p || !out) return fail(TKV_INVALID_ARGUMENT, "spec, params and cache must not be NULL");
    return guarded([&] {
        CacheSpec spec;
        if (Status s = parse_cache_spec(text, spec); !s.ok()) return result(s);
        auto made = std::make_unique<tkv_cache>();
        if (Status s =
                KvCache::create(spec, {p->n_layers, p->n_kv_heads, p->head_dim_k, p->head_dim_v, p->n_streams, p->n_cells}, made->cache);
            !s.ok())
            return result(s);
        *out = made.release();
        return int{TKV_OK};
    });
}
void        tkv_cache_destroy(tkv_cache* c) { delete c; }
const char* tkv_cache_spec(const tkv_cache* c) { return c ? c->cache->spec_text().c_str() : ""; }
size_t      tkv_cache_bytes(const tkv_cache* c) { return c ? c->cache->bytes() : 0; }
double      tkv_cache_bits_per_value(const tkv_cache* c) { return c ? c->cache->bits_per_value() : 0; }
int64_t     tkv_cache_refused_rows(const tkv_cache* c) { return c ? c->cache->refused_rows() : 0; }
int         tkv_cache_clear(tkv_cache* c) {
            return guarded([&]() -> int {
        if (!c) return fail(TKV_INVALID_ARGUMENT, "the cache is NULL");
        c->cache->clear();
        return TKV_OK;
    });
}

int tkv_write(tkv_cache* c, int layer, tkv_operand op, int stream, int64_t first, int64_t n, const float* x, const int64_t* cells) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, layer, op, stream, cells ? 0 : first, cells ? 0 : n); !s.ok()) return result(s);
        if (n < 0 || (n > 0 && !x)) return fail(TKV_INVALID_ARGUMENT, "n must not be negative and x not NULL");
        for (int64_t i = 0; cells && i < n; i++) // all before the first row is written
            if (Status s = check_cells(c, layer, op, stream, cells[i], 1); !s.ok()) return result(s);
        const Operand o     = op == TKV_K ? Operand::K : Operand::V;
        const auto    token = static_cast<int64_t>(c->cache->shape().n_kv_heads) * c->cache->store(layer, o).shape().head_dim;
        for (int64_t i = 0; i < n; i++) c->cache->write(layer, o, stream, cells ? cells[i] : first + i, x + i * token);
        return TKV_OK;
    });
}
int tkv_batch_begin(tkv_cache* c, int64_t n, const tkv_token* tokens) {
    return guarded([&]() -> int {
        std::vector<KvCache::Token> batch;
        if (Status s = batch_of(c, tokens, n, batch); !s.ok()) return result(s);
        c->cache->begin_batch(std::move(batch));
        return TKV_OK;
    });
}
int tkv_append(tkv_cache* c, int layer, tkv_operand op, const float* x) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, layer, op, 0, 0, 0); !s.ok()) return result(s);
        const Operand o = op == TKV_K ? Operand::K : Operand::V;
        if (c->cache->batch_tokens() == 0)
            return fail(TKV_INVALID_ARGUMENT, "there is no batch: tkv_batch_begin says which tokens the rows are of");
        if (!x) return fail(TKV_INVALID_ARGUMENT, "x must not be NULL");
        if (c->cache->appended(layer, o))
            return fail(TKV_INVALID_ARGUMENT, std::string(o == Operand::K ? "K" : "V") + " of layer " + std::to_string(layer) +
                                                  " was appended before: a batch takes it once");
        c->cache->append(layer, o, x);
        return TKV_OK;
    });
}
int tkv_remove(tkv_cache* c, int stream, int64_t first, int64_t n) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, 0, TKV_K, stream, first, n); !s.ok()) return result(s);
        c->cache->remove(stream, first, n);
        return TKV_OK;
    });
}
int tkv_read(const tkv_cache* c, int layer, tkv_operand op, int stream, int64_t first, int64_t n, float* x) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, layer, op, stream, first, n); !s.ok()) return result(s);
        if (n > 0 && !x) return fail(TKV_INVALID_ARGUMENT, "x must not be NULL");
        const Operand o     = op == TKV_K ? Operand::K : Operand::V;
        const auto    token = static_cast<int64_t>(c->cache->shape().n_kv_heads) * c->cache->store(layer, o).shape().head_dim;
        for (int64_t i = 0; i < n; i++) c->cache->read(layer, o, stream, first + i, x + i * token);
        return TKV_OK;
    });
}
int tkv_copy(tkv_cache* c, int from, int to, int64_t first, int64_t n) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, 0, TKV_K, from, first, n); !s.ok()) return result(s);
        if (Status s = check_cells(c, 0, TKV_K, to, first, n); !s.ok()) return result(s);
        if (from != to) c->cache->copy(from, to, first, n);
        return TKV_OK;
    });
}

tkv_attention tkv_attention_default(void) {
    tkv_attention a{};
    a.n_streams = 1, a.n_threads = 1, a.scale = 1.0f;
    return a;
}
int tkv_attend_begin(const tkv_cache* c, int layer, const tkv_attention* a, tkv_job** out) {
    if (!out) return fail(TKV_INVALID_ARGUMENT, "job must not be NULL");
    return guarded([&] {
        AttentionArgs args;
        if (Status s = arguments_of(c, layer, a, args); !s.ok()) return result(s);
        if (a->n_threads < 1 || a->n_threads > 4096) return fail(TKV_INVALID_ARGUMENT, "n_threads must be 1 to 4096");
        if (Status s = check(args); !s.ok()) return result(s);
        auto job = std::make_unique<tkv_job>();
        c->cache->attach_exact(layer, args, job->masks);
        if (Status s = job->job.prepare(args, a->n_threads); !s.ok()) return result(s);
        *out = job.release();
        return int{TKV_OK};
    });
}
void tkv_attend_run(tkv_job* j) {
    if (!j) return;
    if (guarded([&] { return j->job.run(), int{TKV_OK}; }) != TKV_OK) j->failed = true;
}
int tkv_attend_end(tkv_job* j) {
    if (!j) return fail(TKV_INVALID_ARGUMENT, "the job is NULL");
    const bool failed = j->failed;
    delete j;
    return failed ? fail(TKV_OUT_OF_MEMORY, "out of memory in one of the threads") : int{TKV_OK};
}
int tkv_attend(const tkv_cache* c, int layer, const tkv_attention* a) {
    tkv_job* job = nullptr;
    if (const int code = tkv_attend_begin(c, layer, a, &job); code != TKV_OK) return code;
    // More threads than there are parts would wake up for nothing.
    const auto helpers = static_cast<int>(std::min<int64_t>(a->n_threads, job->job.units())) - 1;
    c->helpers.run(
        helpers, [](void* j) { tkv_attend_run(static_cast<tkv_job*>(j)); }, job);
    return tkv_attend_end(job);
}

size_t tkv_state_bytes(const tkv_cache* c, int64_t n) {
    return c && n >= 0 && n <= c->cache->shape().n_cells ? c->cache->state_bytes(n) : 0;
}
int tkv_state_save(const tkv_cache* c, int stream, int64_t n, void* bytes, size_t size) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, 0, TKV_K, stream, 0, n); !s.ok()) return result(s);
        if (!bytes || size != c->cache->state_bytes(n))
            return fail(TKV_INVALID_ARGUMENT, "size must be tkv_state_bytes(cache, n) = " + std::to_string(c->cache->state_bytes(n)));
        c->cache->save_state(stream, n, static_cast<uint8_t*>(bytes));
        return TKV_OK;
    });
}
int tkv_state_load(tkv_cache* c, int stream, const void* bytes, size_t size, int64_t* n) {
    return guarded([&]() -> int {
        if (Status s = check_cells(c, 0, TKV_K, stream, 0, 0); !s.ok()) return result(s);
        if (!bytes) return fail(TKV_INVALID_ARGUMENT, "bytes must not be NULL");
        int64_t cells = 0;
        if (Status s = c->cache->load_state(stream, static_cast<const uint8_t*>(bytes), size, cells); !s.ok()) return result(s);
        if (n) *n = cells;
        return TKV_OK;
    });
}
