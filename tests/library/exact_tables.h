// Exact rows without a cache around them: rows are written in batches into the tables of one layer, and the last batch asks. Beside it
// stands a record of who should be exact, by the words of cache/exact_rows.h: the sinks that still have a place, and the `window` newest
// rows that still have one and that each query sees.
#pragma once
#include <map>
#include <memory>
#include <stdexcept>

#include "cache/exact_batch.h"
#include "test_data.h"

namespace tightkv::test {

class ExactTables {
public:
    ExactTables(int sink, int window, const StoreShape& k, const StoreShape& v)
        : sink_(sink), window_(static_cast<int>(std::min<int64_t>(window, k.n_cells))), shape_k_(k), shape_v_(v),
          batch_(sink, window, k.n_streams, k.n_cells), places_{exact_window_slots(window, k.n_cells), exact_sink_slots(sink, k.n_cells)},
          record_(static_cast<size_t>(k.n_streams)), next_(static_cast<size_t>(k.n_streams), 0) {
        const int64_t slots = batch_.ledger().slots();
        make(Operand::K, slots, table_k_), make(Operand::V, slots, table_v_);
    }

    // rows(token, operand, head): [head_dim] of what is written.
    template <class Rows> void write(const std::vector<ExactLedger::Token>& tokens, Rows rows) {
        begin(tokens);
        batch_.drop_tables();
        batch_.ledger().begin_batch(tokens);
        EXPECT_TRUE(batch_.prepare_write(*table_k_) && batch_.prepare_write(*table_v_));
        for (size_t i = 0; i < tokens.size(); i++)
            for (int h = 0; h < shape_k_.n_kv_heads; h++) {
                batch_.write_row(*table_k_, i, h, rows(tokens[i], Operand::K, h));
                batch_.write_row(*table_v_, i, h, rows(tokens[i], Operand::V, h));
            }
    }
    // A row from elsewhere.
    template <class Rows> void adopt(int stream, int64_t cell, bool sink, Rows rows) {
        settle();
        record_[static_cast<size_t>(stream)].erase(cell);
        const int slot = batch_.ledger().adopt(stream, cell, sink);
        note(stream, cell, sink);
        if (slot < 0) return;
        for (int h = 0; h < shape_k_.n_kv_heads; h++) {
            (void)table_k_->write(stream, h, slot, rows(ExactLedger::Token{stream, cell, -1}, Operand::K, h));
            (void)table_v_->write(stream, h, slot, rows(ExactLedger::Token{stream, cell, -1}, Operand::V, h));
        }
    }
    void forget(int stream, int64_t cell) {
        settle();
        batch_.ledger().forget(stream, cell);
        record_[static_cast<size_t>(stream)].erase(cell);
    }
    void clear() {
        batch_.ledger().clear();
        for (auto& r : record_) r.clear();
    }

    void attach(AttentionArgs& a) {
        std::vector<std::vector<ExactLedger::Entry>> entries;
        const bool                                   large = batch_.choose_tables(a, *table_k_, *table_v_);
        const int64_t                                rows  = batch_.entries(a, large, entries);
        if (rows == 0) return;
        masks_.build(a, batch_.ledger(), entries, rows);
        masks_.apply(a);
    }

    // By the record: is this cell exact for token t of n of the last batch of a stream? visible(cell): by the token's mask.
    template <class Visible> bool exact(int stream, int64_t cell, int t, int n, Visible visible) const {
        const auto& record = record_[static_cast<size_t>(stream)];
        const auto  at     = record.find(cell);
        if (at == record.end() || !at->second.place) return false;
        const Row&    row = at->second;
        const int64_t own = next_[static_cast<size_t>(stream)] - n + t;
        if (row.sink || row.order > own) return true;
        int newer = 0;
        for (const auto& [other, r] : record) newer += r.place && !r.sink && r.order <= own && r.order > row.order && visible(other);
        return newer < window_;
    }

private:
    struct Row {
        int64_t order;
        bool    sink, place; // place: whether it still has one
        bool    leaves;      // with the batch that is now
    };
    void note(int stream, int64_t cell, bool sink) {
        record_[static_cast<size_t>(stream)][cell] = {next_[static_cast<size_t>(stream)]++, sink, true, false};
        evict(stream);
    }
    void evict(int stream) { // the oldest of each kind lose their places
        auto& record = record_[static_cast<size_t>(stream)];
        for (const bool sink : {false, true})
            for (;;) {
                int64_t oldest = -1;
                int     n      = 0;
                for (const auto& [cell, r] : record) {
                    if (r.sink != sink || !r.place) continue;
                    n++;
                    if (oldest < 0 || r.order < record[oldest].order) oldest = cell;
                }
                if (n <= places_[sink]) break;
                record[oldest].place = false;
            }
    }
    // A large batch is over.
    void settle() {
        for (int s = 0; deferred_ && s < shape_k_.n_streams; s++) {
            for (auto& [cell, r] : record_[static_cast<size_t>(s)]) r.place = r.place && !r.leaves;
            evict(s);
        }
        deferred_ = false;
    }
    void begin(const std::vector<ExactLedger::Token>& tokens) {
        settle();
        std::vector<int> n(record_.size(), 0);
        for (const ExactLedger::Token& t : tokens) record_[static_cast<size_t>(t.stream)].erase(t.cell), n[static_cast<size_t>(t.stream)]++;
        // The table of a large batch has all rows from before and all of the batch: they go after its attention.
        deferred_ = window_ > 0 && *std::max_element(n.begin(), n.end()) > ExactLedger::kFewTokens;
        std::vector<int> seen(record_.size(), 0);
        for (const ExactLedger::Token& t : tokens) {
            const auto s       = static_cast<size_t>(t.stream);
            const bool sink    = t.position >= 0 && t.position < sink_;
            record_[s][t.cell] = {next_[s]++, sink, true, !sink && n[s] - seen[s] > places_[false]};
            seen[s]++;
            if (!deferred_) evict(t.stream);
        }
    }
    void make(Operand op, int64_t rows, std::unique_ptr<TileStore>& store) const {
        StoreShape shape = op == Operand::K ? shape_k_ : shape_v_;
        shape.n_cells    = rows;
        if (!TileStore::create(format(FormatId::f16), op, shape, store).ok()) throw std::runtime_error("no table");
    }
    int                                 sink_, window_;
    StoreShape                          shape_k_, shape_v_;
    ExactBatch                          batch_;
    int                                 places_[2]; // of the window, of sinks
    bool                                deferred_ = false;
    std::vector<std::map<int64_t, Row>> record_; // [stream]
    std::vector<int64_t>                next_;
    std::unique_ptr<TileStore>          table_k_, table_v_;
    ExactMasks                          masks_;
};

} // namespace tightkv::test
