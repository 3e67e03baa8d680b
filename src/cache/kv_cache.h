// All layers of a model's cache: K and V stores in the formats a specification gives each layer, the exact rows beside them, the keys'
// mean while it is measured, and the serialised state of a stream.
#pragma once
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "cache/exact_batch.h"
#include "cache/self_calibration.h"
#include "cache/tile_store.h"

namespace tightkv {

struct CacheShape {
    int     n_layers = 0, n_kv_heads = 0, head_dim_k = 0, head_dim_v = 0, n_streams = 1;
    int64_t n_cells = 0;
};

class KvCache {
public:
    using Token = ExactLedger::Token;

    static Status create(const CacheSpec& spec, const CacheShape& shape, std::unique_ptr<KvCache>& out);

    const CacheSpec&   spec() const { return spec_; }
    const std::string& spec_text() const { return spec_text_; }
    const CacheShape&  shape() const { return shape_; }
    TileStore&         store(int layer, Operand op) { return *layers_[static_cast<size_t>(layer)].of(op).rows; }
    const TileStore&   store(int layer, Operand op) const { return *layers_[static_cast<size_t>(layer)].of(op).rows; }
    size_t             bytes() const; // with the tables of exact rows, without those of a batch (exact_batch.h)
    double             bits_per_value() const { return bits_per_value_; }
    int64_t            refused_rows() const { return refused_rows_.load(); }
    void               clear();

    // The tokens whose rows append() takes, in this order; no cell twice. They are a batch until the next one begins, or until remove(),
    // copy(), load_state() or clear().
    void   begin_batch(std::vector<Token> tokens);
    size_t batch_tokens() const { return tokens_.size(); }
    bool   appended(int layer, Operand op) const { return layers_[static_cast<size_t>(layer)].of(op).appended; }
    // Rows of the batch, [token][n_kv_heads][head_dim], once per layer and operand. K and V may be appended at the same time, layers one
    // after the other.
    void append(int layer, Operand op, const float* x);
    // The exact rows of a layer, and what they hide, into arguments that check() accepts. masks: as long as these are used.
    void attach_exact(int layer, AttentionArgs& a, ExactMasks& masks) const;

    // x: [n_kv_heads][head_dim] of one token. A cell that has an exact row keeps one: of what was written last.
    void write(int layer, Operand op, int stream, int64_t cell, const float* x);
    void read(int layer, Operand op, int stream, int64_t cell, float* x) const;
    // Exact rows go along; in the other stream they are its newest.
    void copy(int stream_from, int stream_to, int64_t first, int64_t n);
    // Rows without codes, as before the first write, and without an exact one.
    void remove(int stream, int64_t first, int64_t n);

    // State of cells [0, n) of a stream (state.cpp draws the bytes).
    size_t state_bytes(int64_t n) const;
    void   save_state(int stream, int64_t n, uint8_t* out) const; // state_bytes(n) of them
    Status load_state(int stream, const uint8_t* bytes, size_t size, int64_t& n);

private:
    struct Rows {                               // of one operand
        std::unique_ptr<TileStore> rows, exact; // exact: one cell per slot; null: none are kept
        bool                       appended = false;
    };
    struct Layer {
        Rows            k, v;
        SelfCalibration mean{0}; // of the keys
        Rows&           of(Operand op) { return op == Operand::K ? k : v; }
        const Rows&     of(Operand op) const { return op == Operand::K ? k : v; }
    };
    // An exact row as a state has it: its cell is -1 where there is none.
    struct SavedRow {
        int     slot = -1;
        int64_t cell = -1;
        bool    sink = false;
    };
    struct StateParts; // of bytes that are being loaded

    void                      end_batch();
    template <class Row> void write_rows(TileStore& s, size_t n, const Row& row);
    std::vector<SavedRow>     exact_cells(int stream, int64_t first, int64_t n) const; // in order of writing
    size_t                    row_group_bytes() const; // canonical bytes of one token, all layers, heads and operands
    size_t                    mean_bytes() const;
    size_t                    exact_row_bytes() const;       // of one exact row in all layers
    int64_t                   exact_places(int64_t n) const; // in a state of n cells
    bool                      saves_mean(const Layer& l) const { return spec_.mean > 0 && l.k.rows->format().transformed(); }
    uint8_t*                  save_means(uint8_t* at) const;
    uint8_t*                  save_exact(int stream, int64_t n, uint8_t* at) const;
    Status                    find_parts(const uint8_t* bytes, size_t size, StateParts& p) const;
    Status                    check_parts(const StateParts& p) const;
    void                      load_rows(int stream, const StateParts& p);
    void                      load_exact(int stream, const StateParts& p);

    CacheSpec                   spec_;
    std::string                 spec_text_;
    std::string                 state_spec_; // of what decides the bytes of a state: how rows are read does not
    CacheShape                  shape_;
    std::vector<Layer>          layers_;
    std::unique_ptr<ExactBatch> exact_;       // null: no layer has exact rows
    std::vector<Token>          tokens_;      // of the batch
    std::atomic<bool>           fresh_{true}; // no row was written since creation or clear()
    double                      bits_per_value_ = 0;
    std::atomic<int64_t>        refused_rows_{0};
};

} // namespace tightkv
