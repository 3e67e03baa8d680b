// Our buffer: address space, the caches in it, and the host's tensor access functions.
#include "ggml/kv_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>

#include "base/pages.h"
#include "cache/exact_slots.h"
#include "ggml/abi.h"
#include "ggml/exact_cache.h"
#include "ggml/guard.h"
#include "ggml/model_profile.h"
#include "ggml/self_profile.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

ggml_backend_buffer_type_t our_type = nullptr;
std::atomic<int>           unchecked{0}; // buffers with a profile whose model was not seen completely

struct KvBuffer {
    void*                                               base   = nullptr;
    size_t                                              mapped = 0;
    CacheSpec                                           spec;
    std::shared_ptr<const Profile>                      profile;         // of the specification; null: none
    std::unique_ptr<ModelCheck>                         check;           // of the profile, until it is done
    std::vector<const ggml_tensor*>                     planned;         // caches to come, in layer order
    std::unique_ptr<ExactCache>                         exact;           // this and the next outlive the caches, which point to them
    std::unique_ptr<SelfProfile>                        self_profile;    // of the first tokens; null: not wanted
    std::map<const void*, std::unique_ptr<CacheTensor>> caches;          // by address
    size_t                                              unplaced    = 0; // tensors of all kinds still to come
    size_t                                              plain_bytes = 0; // tensors in here that are no caches of ours
    bool                                                announced   = false;
    std::mutex                                          lock;

    ~KvBuffer() {
        unchecked -= check != nullptr;
        if (base) munmap(base, mapped);
    }
};

KvBuffer* of(ggml_backend_buffer_t b) { return static_cast<KvBuffer*>(abi::layout(b)->context); }

// "cache_k_l7" and "cache_v_l7" are one layer.
std::string layer_name(const ggml_tensor* t) {
    const char* l = std::strrchr(t->name, '_');
    return l ? l : t->name;
}

// Layers with a cache, in the order the host created them: the index first=/last= count in.
std::vector<std::string> layer_names(const std::vector<const ggml_tensor*>& caches) {
    std::vector<std::string> layers;
    for (const ggml_tensor* t : caches)
        if (const std::string name = layer_name(t); std::find(layers.begin(), layers.end(), name) == layers.end()) layers.push_back(name);
    return layers;
}
int layer_index(const ggml_tensor* t, const std::vector<std::string>& layers) {
    return static_cast<int>(std::find(layers.begin(), layers.end(), layer_name(t)) - layers.begin());
}

const Format& format_of(const ggml_tensor* t, Operand op, const std::vector<std::string>& layers, const CacheSpec& spec,
                        const Profile* profile) {
    const LayerProfile* l = profile ? profile->layer_of_block(block_of(t)) : nullptr;
    return format(chosen_format(spec, l, op, layer_index(t, layers), static_cast<int>(layers.size())));
}

TensorPlan plan_of(const ggml_tensor* t, Operand op, const std::vector<std::string>& layers, const CacheSpec& spec,
                   const Profile* profile) {
    const int  i = layer_index(t, layers), n = static_cast<int>(layers.size());
    TensorPlan plan{format_of(t, op, layers, spec, profile)};
    plan.sparse_v    = spec.sparse_v;
    plan.exact_slots = spec.exact_rows(i, n) ? exact_slots(spec.sink, spec.window, t->ne[1]) : 0;
    plan.mean_tokens = spec.mean;
    plan.sinks       = spec.sink > 0;
    return plan;
}

std::unique_ptr<CacheTensor> make_cache(const ggml_tensor* t, Operand op, const TensorPlan& plan,
                                        const std::shared_ptr<const Profile>& profile) {
    auto cache = std::make_unique<CacheTensor>(t, op, plan);
    if (profile) cache->set_profile(profile, profile->layer_of_block(block_of(t)));
    return cache;
}

// ---- the host's buffer interface

void  free_buffer(ggml_backend_buffer_t b) { delete of(b); }
void* get_base(ggml_backend_buffer_t b) { return of(b)->base; }

// Called when the host has placed a tensor. When the last one stands, the buffer's size becomes what is really taken: the host prints it,
// and asserts on it only while placing.
ggml_status init_tensor(ggml_backend_buffer_t b, ggml_tensor* t) {
    if (t->view_src) return GGML_STATUS_SUCCESS;
    return guarded(GGML_STATUS_ALLOC_FAILED, [&] {
        KvBuffer* kv = of(b);
        Operand   op;
        // A copy that the host makes of a cache tensor keeps the name; only those announced before are caches.
        if (is_cache_tensor(t, &op) && std::find(kv->planned.begin(), kv->planned.end(), t) != kv->planned.end()) {
            const auto layers = layer_names(kv->planned);
            TensorPlan plan   = plan_of(t, op, layers, kv->spec, kv->profile.get());
            if (!kv->exact && (plan.exact_slots > 0 || plan.mean_tokens > 0 || kv->self_profile))
                kv->exact = std::make_unique<ExactCache>(kv->spec, static_cast<int>(t->ne[2] * t->ne[3]), t->ne[1]);
            plan.exact = kv->exact.get();
            if (kv->spec.compresses(layer_index(t, layers), static_cast<int>(layers.size()))) plan.self_profile = kv->self_profile.get();
            kv->caches[t->data] = make_cache(t, op, plan, kv->profile);
        } else kv->plain_bytes += ggml_nbytes(t);
        if (kv->unplaced > 0 && --kv->unplaced == 0) {
            size_t bytes = kv->plain_bytes;
            for (const auto& [address, cache] : kv->caches) bytes += cache->packed_bytes();
            abi::layout(b)->size = std::min(abi::layout(b)->size, bytes);
        }
        return GGML_STATUS_SUCCESS;
    });
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor* t, const void* data, size_t offset, size_t size) {
    guarded([&] {
        if (CacheTensor* c = cache_of(t)) c->restore(offset_of(t) + offset, data, size);
        else std::memcpy(static_cast<char*>(t->data) + offset, data, size);
    });
}
void get_tensor(ggml_backend_buffer_t, const ggml_tensor* t, void* data, size_t offset, size_t size) {
    guarded([&] {
        if (CacheTensor* c = cache_of(t)) c->read(offset_of(t) + offset, data, size);
        else std::memcpy(data, static_cast<const char*>(t->data) + offset, size);
    });
}
void memset_tensor(ggml_backend_buffer_t b, ggml_tensor* t, uint8_t value, size_t offset, size_t size) {
    CacheTensor* c = cache_of(t);
    if (!c) {
        std::memset(static_cast<char*>(t->data) + offset, value, size);
        return;
    }
    // Whole rows: a row that is written in two parts is encoded twice.
    guarded([&] { c->decide(); });
    uint8_t      bytes[4 * kMaxHeadDim];
    const size_t row = c->head_dim() ? static_cast<size_t>(c->head_dim()) * 2 : sizeof bytes, rows = sizeof bytes / row * row;
    std::memset(bytes, value, sizeof bytes);
    for (size_t at = 0; at < size;) {
        const size_t into = (offset_of(t) + offset + at) % row, n = std::min(into ? row - into : rows, size - at);
        set_tensor(b, t, bytes, offset + at, n);
        at += n;
    }
}

// What the source keeps of a cell exactly, the copy keeps as well.
void copy_exact_row(CacheTensor& from, const CacheTensor::Cell& a, CacheTensor& to, const CacheTensor::Cell& b) {
    to.exact_cache()->forget(b.stream, b.cell);
    to.exact_cache()->withdraw(to, b.stream, b.cell);
    if (!from.exact()) return;
    if (const ExactCache::Offer* kept = from.exact_cache()->offered(from, a.stream, a.cell)) { // itself from elsewhere, just now
        const ExactCache::Offer copy = *kept;
        to.exact_cache()->offer(to, b.stream, b.cell, copy.sink, copy.row.data());
        return;
    }
    const int slot = from.exact_cache()->slot_of(a.stream, a.cell);
    if (slot < 0) return;
    const auto            d = static_cast<size_t>(from.head_dim());
    std::vector<uint16_t> row(static_cast<size_t>(from.n_embd()));
    for (size_t h = 0; h * d < row.size(); h++)
        from.exact()->read_canonical(a.stream, static_cast<int>(h), slot, reinterpret_cast<uint8_t*>(row.data() + h * d));
    to.exact_cache()->offer(to, b.stream, b.cell, from.exact_cache()->is_sink(a.stream, a.cell), row.data());
}

// Sequence copies between streams: packed rows, no decoding. False leaves it to the host (get, then set).
bool copy_rows(const ggml_tensor* src, ggml_tensor* dst) {
    CacheTensor *from = cache_of(src), *to = cache_of(dst);
    if (!from || !to) {
        if (from || to || !in_kv_buffer(src) || !in_kv_buffer(dst)) return false;
        std::memcpy(dst->data, src->data, ggml_nbytes(src));
        return true;
    }
    from->decide(), to->decide();
    if (from != to && (from->profiled() || to->profiled())) return false; // other transforms: by way of f16
    if (from->mode() != to->mode() || !ggml_is_contiguous(src) || !ggml_is_contiguous(dst) || ggml_nbytes(src) != ggml_nbytes(dst))
        return false;
    if (from->mode() == CacheMode::kPlain) {
        std::memmove(dst->data, src->data, ggml_nbytes(src));
        return true;
    }
    const size_t row_bytes = static_cast<size_t>(from->head_dim()) * 2;
    // Codes mean the same under the same transform only.
    if (from != to && (from->calibrates() || to->calibrates() || from->takes_self_profile() || to->takes_self_profile())) return false;
    if (from->format().id != to->format().id || from->head_dim() != to->head_dim() || offset_of(src) % row_bytes ||
        offset_of(dst) % row_bytes || ggml_nbytes(src) % row_bytes)
        return false;
    std::vector<uint8_t> row(from->format().row_bytes(from->head_dim()));
    for (size_t at = 0; at < ggml_nbytes(src); at += row_bytes) {
        const auto a = from->cell_of(static_cast<int64_t>((offset_of(src) + at) / row_bytes));
        const auto b = to->cell_of(static_cast<int64_t>((offset_of(dst) + at) / row_bytes));
        from->store()->read_canonical(a.stream, a.head, a.cell, row.data());
        to->write_copy(b, row.data());
        if (b.head == 0 && to->exact()) copy_exact_row(*from, a, *to, b);
        stats().rows_read++, stats().rows_written++;
    }
    return true;
}

bool cpy_tensor(ggml_backend_buffer_t, const ggml_tensor* src, ggml_tensor* dst) {
    return guarded(false, [&] { return copy_rows(src, dst); });
}

void clear(ggml_backend_buffer_t b, uint8_t value) {
    KvBuffer* kv = of(b);
    for (const auto& [address, cache] : kv->caches) cache->clear();
    if (kv->exact) kv->exact->clear();
    if (value == 0) zero_pages(kv->base, kv->mapped);
    else std::memset(kv->base, value, kv->mapped);
}

} // namespace

bool has_cache_name(const ggml_tensor* t) { return std::strncmp(t->name, "cache_", 6) == 0; }

bool is_cache_tensor(const ggml_tensor* t, Operand* op) {
    const bool k = std::strncmp(t->name, "cache_k_l", 9) == 0, v = std::strncmp(t->name, "cache_v_l", 9) == 0;
    if (t->view_src || t->type != GGML_TYPE_F16 || !(k || v)) return false;
    if (op) *op = k ? Operand::K : Operand::V;
    return true;
}

ggml_backend_buffer_type_t kv_buffer_type() { return our_type; }
void                       set_kv_buffer_type(ggml_backend_buffer_type_t buft) { our_type = buft; }

CacheTensor* cache_of(const ggml_tensor* t) {
    if (!in_kv_buffer(t)) return nullptr;
    const ggml_tensor* r  = root_of(t);
    KvBuffer*          kv = of(r->buffer);
    if (!kv) return nullptr;
    const auto at = kv->caches.find(r->data);
    return at == kv->caches.end() ? nullptr : at->second.get();
}

size_t planned_bytes(const std::vector<const ggml_tensor*>& caches, const CacheSpec& spec) {
    const auto layers = layer_names(caches);
    size_t     bytes  = 0;
    for (const ggml_tensor* t : caches) {
        Operand op = Operand::K;
        (void)is_cache_tensor(t, &op);
        const auto profile = profile_of(spec);
        bytes += make_cache(t, op, plan_of(t, op, layers, spec, profile.get()), profile)->packed_bytes();
    }
    return bytes;
}

ggml_backend_buffer_t allocate_kv_buffer(size_t size, size_t n_tensors, const std::vector<const ggml_tensor*>& caches,
                                         const CacheSpec& spec) {
    static const abi::BufferInterface kInterface = {free_buffer, get_base, init_tensor, memset_tensor, set_tensor, get_tensor,
                                                    nullptr,     nullptr,  cpy_tensor,  clear,         nullptr};
    auto                              kv         = std::make_unique<KvBuffer>();
    kv->mapped                                   = size + 4096;
    kv->spec                                     = spec;
    kv->planned                                  = caches;
    kv->unplaced                                 = n_tensors;
    kv->profile                                  = caches.empty() ? nullptr : profile_of(spec);
    if (spec.self_profile && !caches.empty()) kv->self_profile = std::make_unique<SelfProfile>();
    if (kv->profile) kv->check = std::make_unique<ModelCheck>(kv->profile), unchecked++;
    void* p = mmap(nullptr, kv->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    kv->base                = p;
    ggml_backend_buffer_t b = abi::ggml_backend_buffer_init(our_type, kInterface, kv.get(), size);
    if (b) (void)kv.release();
    return b;
}

std::vector<CacheTensor*> tensors_of_buffer(const ggml_tensor* t) {
    std::vector<CacheTensor*> all;
    for (const auto& [address, c] : of(root_of(t)->buffer)->caches)
        if (c->mode() == CacheMode::kTiles) all.push_back(c.get());
    return all;
}

void check_profiles(ggml_cgraph* graph) {
    if (unchecked == 0) return;
    std::vector<KvBuffer*> buffers;
    const auto             add = [&](const ggml_tensor* t) {
        KvBuffer* kv = t && in_kv_buffer(t) ? of(root_of(t)->buffer) : nullptr;
        if (kv && std::find(buffers.begin(), buffers.end(), kv) == buffers.end()) buffers.push_back(kv);
    };
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        add(ggml_graph_node(graph, i));
        for (const ggml_tensor* s : ggml_graph_node(graph, i)->src) add(s);
    }
    for (KvBuffer* kv : buffers) {
        const std::lock_guard guard(kv->lock);
        if (!kv->check) continue;
        std::string line;
        if (!kv->check->look(graph, kv->spec, line)) {
            say_once(line);
            kv->spec.profile.clear();
            kv->profile.reset();
            const auto layers = layer_names(kv->planned);
            for (const ggml_tensor* t : kv->planned)
                if (const auto at = kv->caches.find(t->data); at != kv->caches.end())
                    at->second->drop_profile(format_of(t, at->second->operand(), layers, kv->spec, nullptr));
        }
        if (kv->check->done()) kv->check.reset(), unchecked--;
    }
}

void announce(const ggml_tensor* cache_view) {
    KvBuffer*             kv = of(root_of(cache_view)->buffer);
    const std::lock_guard guard(kv->lock);
    if (kv->announced) return;
    kv->announced = true;
    size_t bytes = 0, f16 = 0;
    int    compressed = 0, exact = 0, dk = 0, dv = 0; // exact: f16 rows because the specification says so
    for (const auto& [address, c] : kv->caches) {
        bytes += c->packed_bytes();
        f16 += static_cast<size_t>(c->n_embd() * c->n_cells() * c->n_streams()) * 2;
        if (c->mode() == CacheMode::kTiles) (c->format().transformed() ? compressed : exact)++;
        if (c->head_dim()) (c->operand() == Operand::K ? dk : dv) = c->head_dim();
    }
    const std::string as_f16 = exact ? ", " + std::to_string(exact) + " f16 by the specification" : "";
    char              line[512];
    std::snprintf(
        line, sizeof line, "KV cache %s: %d of %zu tensors compressed%s, head_dim %d/%d, %.2f MiB, %.3f bits per value (f16: %.2f MiB)",
        kv->spec.to_string().c_str(), compressed, kv->caches.size(), as_f16.c_str(), dk, dv, static_cast<double>(bytes) / 1048576.0,
        16.0 * static_cast<double>(bytes) / static_cast<double>(f16), static_cast<double>(f16) / 1048576.0);
    inform(line);
    const int64_t cells = root_of(cache_view)->ne[1];
    if (kv->exact && kv->spec.window >= cells)
        say("window=" + std::to_string(kv->spec.window) + " covers all " + std::to_string(cells) +
            " cells of a cache: every row of it is exact, and its codes serve nothing");
}

} // namespace tightkv
