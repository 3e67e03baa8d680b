// Exact rows and the keys' mean inside the host: what a graph tells about the tokens it writes, and the tables its attention reads.
// One per buffer, that is per KV cache of the host; cache/exact_rows.h says what is kept.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/cache_spec.h"
#include "cache/exact_batch.h"
#include "ggml.h"

namespace tightkv {

class CacheTensor;

class ExactCache {
public:
    ExactCache(const CacheSpec& spec, int n_streams, int64_t n_cells);

    // A graph is about to run. writes: its SET_ROWS nodes on this buffer, at least one; tensors: all compressed ones of it; positions: of
    // its tokens (positions_of_keys), null where they are not known. True: with it a batch begins; false: it goes on with the tokens of the
    // graph before.
    bool begin_graph(std::span<ggml_tensor* const> writes, std::span<CacheTensor* const> tensors, const ggml_tensor* positions);
    // This batch is larger than the tables: its rows get one of their own, which prepare_write() makes.
    bool batch_table() const { return batch_.wants_table(); }
    // One thread, before the rows of a SET_ROWS node are written. c has a table.
    void prepare_write(CacheTensor& c, const ggml_tensor* rows);
    // Row i of the node, one KV head: x as the host would keep it. Different (row, head) may be written at the same time.
    void write_row(CacheTensor& c, size_t i, int head, const float* x);
    // One thread, before attention: the exact rows of both operands and the masks. Both must have tables.
    void attach(AttentionArgs& a, CacheTensor& k, CacheTensor& v);

    // The rows of a cell as the host wrote them, if they are kept: the slot, or -1.
    int  slot_of(int stream, int64_t cell) const { return batch_.ledger().slot_of(stream, cell); }
    bool is_sink(int stream, int64_t cell) const;
    void forget(int stream, int64_t cell) { batch_.ledger().forget(stream, cell); }

    // A row from outside (restored, copied) that would be exact had it been written here; all heads, f16. It finds its place with the next
    // graph, if every tensor of the cache has got it. sink: as which kind.
    struct Offer {
        bool                  sink;
        std::vector<uint16_t> row; // [n_embd]
    };
    void   offer(CacheTensor& c, int stream, int64_t cell, bool sink, const uint16_t* row);
    Offer* offered(const CacheTensor& c, int stream, int64_t cell); // null: none
    void   withdraw(const CacheTensor& c, int stream, int64_t cell);
    // How many a tensor has.
    size_t offers(const CacheTensor& c) const;
    void   clear();

    // Of the batch; 0 where the graph does not say what it writes.
    size_t n_tokens() const { return tokens_.size(); }
    // Of the batch: position of token i, -1 where the graph does not say.
    int32_t position(size_t i) const { return i < tokens_.size() ? tokens_[i].position : -1; }
    // Rows at the ends of what is restored that would be exact: as many as there are slots, so that saving it again finds them all.
    int n_sink() const { return spec_.sink; }
    int n_window() const { return batch_.ledger().window_slots(); }

private:
    struct Offers {                                 // of one tensor
        std::unordered_map<int64_t, Offer> by_cell; // stream * n_cells + cell
        std::deque<int64_t>                order;   // oldest first; some may be withdrawn
    };
    struct MaskKey {
        const void* mask;
        int64_t     n_kv, cell0;
        int         n_tokens, n_streams, stream0;
        bool        batch;
        bool        operator==(const MaskKey&) const = default;
    };
    struct Masks {
        MaskKey    key;
        ExactMasks masks;
    };
    bool read_tokens(std::span<ggml_tensor* const> writes, const ggml_tensor* positions);
    bool continues_batch(std::span<ggml_tensor* const> writes);
    void take_offers(std::span<CacheTensor* const> tensors);

    CacheSpec                            spec_;
    int                                  n_streams_;
    int64_t                              n_cells_;
    ExactBatch                           batch_;
    std::vector<ExactLedger::Token>      tokens_;  // of the batch that is being written
    std::vector<const CacheTensor*>      written_; // by the graphs of this batch
    std::map<const CacheTensor*, Offers> offers_;
    std::vector<std::unique_ptr<Masks>>  masks_; // of this graph
    size_t                               n_masks_ = 0;
};

} // namespace tightkv
