// Layers of a cache and row access through them.
#include "cache/kv_cache.h"

#include <algorithm>

#include "base/checksum.h"
#include "cache/profile.h"

namespace tightkv {

namespace {

// The profile of a specification; null where it names none. It has the shape that is asked for.
Status load_profile(const CacheSpec& spec, const CacheShape& s, std::unique_ptr<Profile>& out) {
    if (spec.profile.empty()) return {};
    auto p = std::make_unique<Profile>();
    if (Status e = Profile::load(spec.profile, *p); !e.ok()) return e;
    if (p->layers.size() != static_cast<size_t>(s.n_layers))
        return invalid_argument("profile " + spec.profile + " has " + std::to_string(p->layers.size()) + " layers, the cache has " +
                                std::to_string(s.n_layers));
    for (const LayerProfile& l : p->layers)
        for (const Operand op : {Operand::K, Operand::V}) {
            const int d = op == Operand::K ? s.head_dim_k : s.head_dim_v;
            if (Status e = Profile::fits(l, op, d, int64_t{d} * s.n_kv_heads); !e.ok())
                return invalid_argument("profile " + spec.profile + ": " + e.message());
        }
    out = std::move(p);
    return {};
}

} // namespace

Status KvCache::create(const CacheSpec& spec, const CacheShape& s, std::unique_ptr<KvCache>& out) {
    if (s.n_layers < 1 || s.n_layers > 100000) return invalid_argument("n_layers must be 1 to 100000");
    if (s.n_kv_heads < 1 || s.n_streams < 1 || s.n_cells < 1 || s.n_cells > INT32_MAX)
        return invalid_argument("a cache needs at least one KV head, one stream and 1 to 2147483647 cells");
    if (spec.sink || spec.window || spec.mean)
        return unsupported(
            "sink=, window= and mean= need the positions of tokens and the order of writing, which this interface does not take; "
            "the llama.cpp adapter knows them");
    if (spec.self_profile)
        return unsupported("profile=auto needs the queries of a model's attention, which this interface does not see; accepted here: "
                           "profile=FILE of tightkv calibrate. The llama.cpp adapter takes profile=auto");
    std::unique_ptr<Profile> profile;
    if (Status e = load_profile(spec, s, profile); !e.ok()) return e;
    auto cache        = std::make_unique<KvCache>();
    cache->spec_      = spec;
    cache->spec_text_ = spec.to_string();
    CacheSpec stored  = spec;
    stored.sparse_v   = kDefaultSparseV;
    if (profile) { // rows mean something under this profile alone, wherever its file lies
        const std::vector<uint8_t> bytes = profile->write();
        stored.profile                   = "checksum " + std::to_string(fnv1a(bytes.data(), bytes.size()));
    }
    cache->state_spec_ = stored.to_string();
    cache->shape_      = s;
    for (int i = 0; i < s.n_layers; i++) {
        Layer                     layer;
        const LayerProfile* const p = profile ? &profile->layers[static_cast<size_t>(i)] : nullptr;
        for (const Operand op : {Operand::K, Operand::V}) {
            const StoreShape shape{s.n_streams, s.n_kv_heads, op == Operand::K ? s.head_dim_k : s.head_dim_v, s.n_cells};
            auto&            store = op == Operand::K ? layer.k : layer.v;
            if (Status e = TileStore::create(format(chosen_format(spec, p, op, i, s.n_layers)), op, shape, store); !e.ok()) return e;
            if (p) store->set_transforms(profile->transforms(*p, op, op == Operand::K)); // of values too beside sink rows
        }
        cache->layers_.push_back(std::move(layer));
    }
    cache->bits_per_value_ = profile ? tightkv::bits_per_value(spec, *profile, s.n_cells)
                                     : spec.bits_per_value(s.n_layers, s.head_dim_k, s.head_dim_v, s.n_cells);
    out                    = std::move(cache);
    return {};
}

size_t KvCache::bytes() const {
    size_t n = 0;
    for (const Layer& l : layers_) n += l.k->bytes() + l.v->bytes();
    return n;
}

void KvCache::clear() {
    for (Layer& l : layers_) l.k->clear(), l.v->clear();
}

void KvCache::write(int layer, Operand op, int stream, int64_t cell, const float* x) {
    TileStore& s = store(layer, op);
    StoreRow   rows[kEncodeRows];
    RowStatus  status[kEncodeRows];
    for (int h = 0; h < shape_.n_kv_heads;) {
        size_t n = 0;
        for (; n < kEncodeRows && h < shape_.n_kv_heads; n++, h++, x += s.shape().head_dim) rows[n] = {stream, h, cell, x};
        s.write({rows, n}, status);
        refused_rows_ += std::count(status, status + n, RowStatus::kRefused);
    }
}

void KvCache::read(int layer, Operand op, int stream, int64_t cell, float* x) const {
    const TileStore& s = store(layer, op);
    for (int h = 0; h < shape_.n_kv_heads; h++, x += s.shape().head_dim) s.read(stream, h, cell, x);
}

void KvCache::copy(int from, int to, int64_t first, int64_t n) {
    uint8_t row[kMaxHeadDim * 2];
    for (Layer& l : layers_)
        for (TileStore* s : {l.k.get(), l.v.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = first; c < first + n; c++) {
                    s->read_canonical(from, h, c, row);
                    s->write_canonical(to, h, c, row);
                }
}

} // namespace tightkv
