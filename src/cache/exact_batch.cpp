// Filling and choosing the tables of a batch.
#include "cache/exact_batch.h"

#include <algorithm>

namespace tightkv {

bool ExactBatch::prepare_write(const TileStore& slots) {
    if (!wants_table()) return true;
    Table&           table = table_of(slots);
    const StoreShape shape = slots.shape();
    const int64_t    n     = ledger_.slots() + ledger_.largest_batch();
    table.owner            = nullptr;
    if (!table.rows || table.rows->shape().n_cells < n || table.rows->shape().head_dim != shape.head_dim ||
        table.rows->shape().n_kv_heads != shape.n_kv_heads) {
        const StoreShape wanted{n_streams_, shape.n_kv_heads, shape.head_dim, n};
        table.rows.reset();
        if (!TileStore::create(format(FormatId::f16), slots.operand(), wanted, table.rows).ok()) return false;
    }
    table.owner = &slots;
    std::vector<uint8_t> row(static_cast<size_t>(shape.head_dim) * 2);
    for (int s = 0; s < n_streams_; s++) {
        int64_t at = 0;
        for (const ExactLedger::Kept& kept : ledger_.before_batch(s)) {
            for (int h = 0; h < shape.n_kv_heads; h++) {
                slots.read_canonical(s, h, kept.slot, row.data());
                table.rows->write_canonical(s, h, at, row.data());
            }
            at++;
        }
    }
    return true;
}

void ExactBatch::write_row(TileStore& slots, size_t i, int head, const float* x) {
    const int stream = ledger_.stream_of_token(i);
    if (const int slot = ledger_.slot_of_token(i); slot >= 0) (void)slots.write(stream, head, slot, x);
    if (const Table& table = table_of(slots); table.owner == &slots)
        (void)table.rows->write(stream, head, static_cast<int64_t>(ledger_.before_batch(stream).size()) + ledger_.index_in_stream(i), x);
}

bool ExactBatch::choose_tables(AttentionArgs& a, const TileStore& k, const TileStore& v) const {
    const bool batch = k_.owner == &k && v_.owner == &v;
    a.exact.k        = batch ? k_.rows.get() : &k;
    a.exact.v        = batch ? v_.rows.get() : &v;
    a.exact.stream0  = a.k_stream0;
    return batch;
}

int64_t ExactBatch::entries(const AttentionArgs& a, bool batch, std::vector<std::vector<ExactLedger::Entry>>& entries) const {
    int64_t rows = 0;
    entries.clear();
    for (int s = a.k_stream0; s < a.k_stream0 + a.n_streams; s++) {
        std::vector<ExactLedger::Entry> e;
        if (batch) {
            for (const ExactLedger::Kept& kept : ledger_.before_batch(s)) e.push_back(kept.entry);
            const auto written = ledger_.batch_entries(s);
            e.insert(e.end(), written.begin(), written.end());
        } else {
            const auto slots = ledger_.entries(s);
            e.assign(slots.begin(), slots.end());
        }
        rows = std::max(rows, static_cast<int64_t>(e.size()));
        entries.push_back(std::move(e));
    }
    return rows;
}

} // namespace tightkv
