// All layers of a model's cache: K and V stores in the formats a specification gives each layer, and their serialised state.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "cache/tile_store.h"

namespace tightkv {

struct CacheShape {
    int     n_layers = 0, n_kv_heads = 0, head_dim_k = 0, head_dim_v = 0, n_streams = 1;
    int64_t n_cells = 0;
};

class KvCache {
public:
    static Status create(const CacheSpec& spec, const CacheShape& shape, std::unique_ptr<KvCache>& out);

    const CacheSpec&   spec() const { return spec_; }
    const std::string& spec_text() const { return spec_text_; }
    const CacheShape&  shape() const { return shape_; }
    TileStore&         store(int layer, Operand op) { return *(op == Operand::K ? layers_[layer].k : layers_[layer].v); }
    const TileStore&   store(int layer, Operand op) const { return *(op == Operand::K ? layers_[layer].k : layers_[layer].v); }
    size_t             bytes() const;
    double             bits_per_value() const { return bits_per_value_; }
    int64_t            refused_rows() const { return refused_rows_.load(); }
    void               clear();

    // x: [n_kv_heads][head_dim] of one token.
    void write(int layer, Operand op, int stream, int64_t cell, const float* x);
    void read(int layer, Operand op, int stream, int64_t cell, float* x) const;
    void copy(int stream_from, int stream_to, int64_t first, int64_t n);

    // State of cells [0, n) of a stream (state.cpp draws the bytes).
    size_t state_bytes(int64_t n) const;
    void   save_state(int stream, int64_t n, uint8_t* out) const; // state_bytes(n) of them
    Status load_state(int stream, const uint8_t* bytes, size_t size, int64_t& n);

private:
    struct Layer {
        std::unique_ptr<TileStore> k, v;
    };
    size_t row_group_bytes() const; // canonical bytes of one token, all layers, heads and operands

    CacheSpec            spec_;
    std::string          spec_text_;
    std::string          state_spec_; // of what decides the bytes of a state: how rows are read does not
    CacheShape           shape_;
    std::vector<Layer>   layers_;
    double               bits_per_value_ = 0;
    std::atomic<int64_t> refused_rows_{0};
};

} // namespace tightkv
