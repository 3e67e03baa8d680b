// Layers of a cache and row access through them.
#include "cache/kv_cache.h"

namespace tightkv {

Status KvCache::create(const CacheSpec& spec, const CacheShape& s, std::unique_ptr<KvCache>& out) {
    if (s.n_layers < 1 || s.n_layers > 100000) return invalid_argument("n_layers must be 1 to 100000");
    if (s.n_kv_heads < 1 || s.n_streams < 1 || s.n_cells < 1 || s.n_cells > INT32_MAX)
        return invalid_argument("a cache needs at least one KV head, one stream and 1 to 2147483647 cells");
    if (spec.sink || spec.window || spec.mean)
        return unsupported(
            "sink=, window= and mean= need the positions of tokens and the order of writing, which this interface does not take; "
            "the llama.cpp adapter knows them");
    auto cache         = std::make_unique<KvCache>();
    cache->spec_       = spec;
    cache->spec_text_  = spec.to_string();
    CacheSpec stored   = spec;
    stored.sparse_v    = kDefaultSparseV;
    cache->state_spec_ = stored.to_string();
    cache->shape_      = s;
    for (int i = 0; i < s.n_layers; i++) {
        Layer layer;
        if (Status e = TileStore::create(format(spec.k_of(i, s.n_layers)), Operand::K, {s.n_streams, s.n_kv_heads, s.head_dim_k, s.n_cells},
                                         layer.k);
            !e.ok())
            return e;
        if (Status e = TileStore::create(format(spec.v_of(i, s.n_layers)), Operand::V, {s.n_streams, s.n_kv_heads, s.head_dim_v, s.n_cells},
                                         layer.v);
            !e.ok())
            return e;
        cache->layers_.push_back(std::move(layer));
    }
    out = std::move(cache);
    return {};
}

size_t KvCache::bytes() const {
    size_t n = 0;
    for (const Layer& l : layers_) n += l.k->bytes() + l.v->bytes();
    return n;
}

double KvCache::bits_per_value() const {
    return spec_.bits_per_value(shape_.n_layers, shape_.head_dim_k, shape_.head_dim_v, shape_.n_cells);
}

void KvCache::clear() {
    for (Layer& l : layers_) l.k->clear(), l.v->clear();
}

void KvCache::write(int layer, Operand op, int stream, int64_t cell, const float* x) {
    TileStore& s = store(layer, op);
    for (int h = 0; h < shape_.n_kv_heads; h++, x += s.shape().head_dim)
        if (s.write(stream, h, cell, x) == RowStatus::kRefused) refused_rows_++;
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
