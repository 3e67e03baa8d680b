// The tables of exact rows that a batch writes and its attention reads, for one cache of many layers. Slots of the ledger are the rows of
// every layer's own tables. A batch that is too large for them gets a table of one layer, K and V each, for the length of that layer's
// attention (exact_rows.h): what the slots held before, then the batch.
#pragma once
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "cache/exact_rows.h"

namespace tightkv {

class ExactBatch {
public:
    ExactBatch(int n_sink, int n_window, int n_streams, int64_t n_cells)
        : ledger_(n_sink, n_window, n_streams, n_cells), window_(n_window > 0), n_streams_(n_streams) {}

    const ExactLedger& ledger() const { return ledger_; }
    ExactLedger&       ledger() { return ledger_; }

    // No table of a batch is valid any more.
    void drop_tables() { k_.owner = nullptr, v_.owner = nullptr; }
    // The same where it is this layer's: rows of it came otherwise than by write_row().
    void drop_table(const TileStore& slots) {
        const TileStore* mine = &slots;
        table_of(slots).owner.compare_exchange_strong(mine, nullptr);
    }
    // The rows of this batch get a table of their own, which prepare_write() makes.
    bool wants_table() const { return window_ && !ledger_.few(); }

    // One thread, before the batch's rows of one layer and operand are written. slots: its table.
    // False: no memory for the table of this batch; its attention would find only the slots' rows.
    bool prepare_write(const TileStore& slots);
    // Row i of the batch, one KV head: x: [head_dim]. Different (row, head) may be written at the same time.
    void write_row(TileStore& slots, size_t i, int head, const float* x);

    // The tables that attention over these layers' slots reads, into a.exact. True: those of the batch.
    bool choose_tables(AttentionArgs& a, const TileStore& k, const TileStore& v) const;
    // Their rows by query stream, entries[s] of stream a.k_stream0 + s, and how many rows that is at most.
    int64_t entries(const AttentionArgs& a, bool batch, std::vector<std::vector<ExactLedger::Entry>>& entries) const;

private:
    struct Table {
        std::unique_ptr<TileStore>    rows;
        std::atomic<const TileStore*> owner{nullptr}; // slots of the layer whose rows it has
    };
    Table& table_of(const TileStore& slots) { return slots.operand() == Operand::K ? k_ : v_; }

    ExactLedger ledger_;
    bool        window_;
    int         n_streams_;
    Table       k_, v_;
};

} // namespace tightkv
