// Exact rows: some cells keep their f16 row beside the codes, because almost all of the error comes from few keys: the first `sink`
// positions of every sequence, and for every query the newest `window` rows that it sees of those that its stream keeps.
//
// The ledger says which cells those are; it is one for all layers of a cache, since they write the same cells. Every layer keeps the rows
// in a table of its own, [slot] of a TileStore of f16 rows. The codes are always written too, so a cell that leaves the ledger costs
// nothing. Attention hides the exact cells from the codes and adds a pass over the table (read_path.h); masks for both come from here.
//
// "Newest" is the order of writing, as each query saw it: token i of a batch uses the `window` newest rows up to its own. Rows that its
// mask hides do not count: those of other sequences, and rows that the host has taken back, such as those of draft tokens. They keep their
// slots until their cells are written again. A table holds the window of every token of a batch of up to kFewTokens tokens; of a single
// token also where up to three rows were taken back. A larger batch gets a table for the length of its attention: what the table held
// before, then the batch.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/exact_slots.h"
#include "cache/read_path.h"

namespace tightkv {

class ExactLedger {
public:
    static constexpr int kFewTokens = kExactFewTokens;

    struct Token {
        int     stream;
        int64_t cell;
        int32_t position;
    };
    // An exact row as attention sees it.
    struct Entry {
        int64_t cell  = -1;
        int64_t order = 0; // of writing, per stream; sinks are visible to every query, whatever their order
        bool    sink  = false;
    };

    ExactLedger(int n_sink, int n_window, int n_streams, int64_t n_cells);

    int slots() const { return n_sink_slots_ + ring_; }
    int window_slots() const { return ring_; }

    // The tokens of a batch are about to be written, in this order. Cells that are written again lose their old row.
    void begin_batch(std::span<const Token> tokens);
    // Of the batch: the slot that keeps token i's row, or -1.
    int slot_of_token(size_t i) const { return batch_[i].slot; }
    // Of the batch: its place among the tokens of its stream, and how many of them there are.
    int index_in_stream(size_t i) const { return batch_[i].index; }
    int stream_of_token(size_t i) const { return batch_[i].stream; }
    int batch_tokens(int stream) const { return streams_[static_cast<size_t>(stream)].n_batch; }
    int largest_batch() const; // over the streams
    // Whether the tables hold every row that a query of this batch wants.
    bool few() const { return largest_batch() <= kFewTokens; }

    // The slot that keeps the row of a cell, or -1.
    int slot_of(int stream, int64_t cell) const { return streams_[static_cast<size_t>(stream)].slot_of_cell[static_cast<size_t>(cell)]; }
    // A row from elsewhere (a restored state, a copied sequence): finds it a slot as if it had just been written.
    int  adopt(int stream, int64_t cell, bool sink);
    void forget(int stream, int64_t cell);
    void clear();

    // Entries by slot of the table (empty slots have no cell), and those before the batch for the table of a large batch: pairs of slot and
    // entry, by slot.
    std::span<const Entry> entries(int stream) const { return streams_[static_cast<size_t>(stream)].slot; }
    struct Kept {
        int   slot;
        Entry entry;
    };
    std::span<const Kept> before_batch(int stream) const { return streams_[static_cast<size_t>(stream)].before; }
    // Entry of token i of the batch of a stream, whether or not a slot keeps it.
    std::vector<Entry> batch_entries(int stream) const;

    // The order of query `token` of `n_tokens` of a stream: its window are the newest rows up to this one. When these are not the tokens of
    // the batch: that of the last token.
    int64_t order_of_query(int stream, int token, int n_tokens) const;
    int     window() const { return n_window_; }

private:
    struct BatchToken {
        int   stream;
        Entry entry;
        int   slot, index;
    };
    struct Stream {
        std::vector<int32_t> slot_of_cell; // [n_cells]
        std::vector<Entry>   slot;         // [sinks, ring]
        std::vector<Kept>    before;
        int                  n_batch = 0, free_sink = 0; // no free slot of a sink before free_sink
        int64_t              next_order = 0;
    };
    int sink_slot(Stream& s) const;
    int window_slot(const Stream& s) const;
    int take(Stream& s, int64_t cell, int64_t order, bool sink);

    int                     n_sink_, n_window_, n_sink_slots_, ring_;
    std::vector<Stream>     streams_;
    std::vector<BatchToken> batch_;
};

// Masks of one attention operation with exact rows: the caller's own with the exact cells of each query hidden, and that of the table.
class ExactMasks {
public:
    // entries[s]: rows of the table that query stream s reads, by place. `a` has the caller's mask (or none) and no per-head mask.
    void build(const AttentionArgs& a, const ExactLedger& ledger, std::span<const std::vector<ExactLedger::Entry>> entries, int64_t n_rows);
    // Puts them into the arguments; the table's stores are the caller's business. Valid until the next build.
    void apply(AttentionArgs& a) const;

private:
    using Tables = std::span<const std::vector<ExactLedger::Entry>>;
    static int64_t words(int64_t n) { return (n + kTileTokens - 1) / kTileTokens; }
    bool           build_bits(const AttentionArgs& a, const ExactLedger& ledger, Tables entries);
    void           build_halves(const AttentionArgs& a, const ExactLedger& ledger, Tables entries);

    // As bits where the caller's mask has only 0 and -inf: [stream][word][token]. Else f16: [stream][token][n_kv], [stream][token][n_rows].
    std::vector<uint64_t> code_bits_, exact_bits_;
    std::vector<uint16_t> codes_, exact_;
    int64_t               n_kv_ = 0, n_rows_ = 0;
    int                   n_tokens_ = 0, n_streams_ = 0;
    bool                  as_bits_ = false;
};

} // namespace tightkv
