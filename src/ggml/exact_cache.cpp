// Tokens of a graph, tables of a batch, rows from outside.
#include "ggml/exact_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ggml/kv_buffer.h"
#include "ggml/stats.h"

namespace tightkv {

ExactCache::ExactCache(const CacheSpec& spec, int n_streams, int64_t n_cells)
    : spec_(spec), n_streams_(n_streams), n_cells_(n_cells), batch_(spec.sink, spec.window, n_streams, n_cells) {}

// False: the nodes do not write the same cells, or those are not known before the graph runs.
bool ExactCache::read_tokens(std::span<ggml_tensor* const> writes, const ggml_tensor* positions) {
    tokens_.clear();
    for (const ggml_tensor* w : writes) {
        const CacheTensor* c     = cache_of(w);
        const ggml_tensor* cells = w->src[1];
        const int64_t      first = c->first_cell(w);
        if (cells->op != GGML_OP_NONE || !cells->data) return false;
        if (w == writes.front()) tokens_.resize(static_cast<size_t>(cells->ne[0]), {0, -1, -1});
        if (cells->ne[0] != static_cast<int64_t>(tokens_.size())) return false;
        for (size_t i = 0; i < tokens_.size(); i++) {
            const int64_t cell = first + row_index(cells, static_cast<int64_t>(i));
            if (cell < 0 || cell >= n_cells_ * n_streams_) throw std::out_of_range("a row index outside the cache");
            ExactLedger::Token& t = tokens_[i];
            if (w == writes.front()) t.stream = static_cast<int>(cell / n_cells_), t.cell = cell % n_cells_;
            else if (t.stream != cell / n_cells_ || t.cell != cell % n_cells_) return false;
        }
    }
    // Several positions per token (M-RoPE: four) lie one kind after the other; the first kind is that of the sequence.
    const auto n = static_cast<int64_t>(tokens_.size());
    if (positions && positions->data && (positions->ne[0] == n || positions->ne[0] == 4 * n))
        for (size_t i = 0; i < tokens_.size(); i++) tokens_[i].position = static_cast<const int32_t*>(positions->data)[i];
    return true;
}

bool ExactCache::begin_graph(std::span<ggml_tensor* const> writes, std::span<CacheTensor* const> tensors, const ggml_tensor* positions) {
    n_masks_ = 0;
    if (continues_batch(writes)) return false;
    written_.clear();
    for (const ggml_tensor* w : writes) written_.push_back(cache_of(w));
    batch_.drop_tables();
    take_offers(tensors);
    if (!read_tokens(writes, positions)) {
        say_once("this graph does not say beforehand which cells it writes: its rows are kept as codes only");
        tokens_.clear();
        batch_.ledger().clear();
        return true;
    }
    if (spec_.sink > 0 && tokens_.front().position < 0)
        say_once("sink= needs the positions of tokens, which this model's graph does not have (no rotary embedding of keys): "
                 "no row is kept as a sink");
    batch_.ledger().begin_batch(tokens_);
    return true;
}

// The host may compute a graph in parts. Then other tensors are written for the same tokens.
bool ExactCache::continues_batch(std::span<ggml_tensor* const> writes) {
    if (tokens_.empty() || !offers_.empty()) return false;
    for (const ggml_tensor* w : writes)
        if (std::find(written_.begin(), written_.end(), cache_of(w)) != written_.end()) return false;
    const std::vector<ExactLedger::Token> before = tokens_;
    const bool                            same   = read_tokens(writes, nullptr) && tokens_.size() == before.size() &&
                      std::equal(tokens_.begin(), tokens_.end(), before.begin(),
                                 [](const auto& a, const auto& b) { return a.stream == b.stream && a.cell == b.cell; });
    tokens_ = before; // with the positions, which only keys tell
    if (same)
        for (const ggml_tensor* w : writes) written_.push_back(cache_of(w));
    return same;
}

void ExactCache::prepare_write(CacheTensor& c, const ggml_tensor* rows) {
    if (rows->ne[1] == static_cast<int64_t>(tokens_.size()) && !batch_.prepare_write(*c.exact()))
        say_once("no memory for the exact rows of a batch: its tokens see only the newest ones");
}

void ExactCache::write_row(CacheTensor& c, size_t i, int head, const float* x) {
    if (i < tokens_.size()) batch_.write_row(*c.exact(), i, head, x);
}

void ExactCache::attach(AttentionArgs& a, CacheTensor& k, CacheTensor& v) {
    const bool    batch = batch_.choose_tables(a, *k.exact(), *v.exact());
    const MaskKey key{a.mask, a.n_kv, a.k_cell0, a.n_tokens, a.n_streams, a.k_stream0, batch};
    for (size_t i = 0; i < n_masks_; i++)
        if (masks_[i]->key == key) return masks_[i]->masks.apply(a);
    std::vector<std::vector<ExactLedger::Entry>> entries;
    const int64_t                                rows = batch_.entries(a, batch, entries);
    if (rows == 0) return;
    if (n_masks_ == masks_.size()) masks_.push_back(std::make_unique<Masks>());
    Masks& m = *masks_[n_masks_++];
    m.key    = key;
    m.masks.build(a, batch_.ledger(), entries, rows);
    m.masks.apply(a);
}

bool ExactCache::is_sink(int stream, int64_t cell) const {
    const int slot = batch_.ledger().slot_of(stream, cell);
    return slot >= 0 && batch_.ledger().entries(stream)[static_cast<size_t>(slot)].sink;
}

void ExactCache::offer(CacheTensor& c, int stream, int64_t cell, bool sink, const uint16_t* row) {
    Offers&       mine = offers_[&c];
    const int64_t key  = stream * n_cells_ + cell;
    if (mine.by_cell.insert_or_assign(key, Offer{sink, {row, row + c.n_embd()}}).second) mine.order.push_back(key);
    // The ends of one restored range, and what it leaves over of earlier ones, is all that can ever find a place.
    const auto most = static_cast<size_t>(2 * batch_.ledger().slots() * n_streams_);
    while (mine.by_cell.size() > most) { // the oldest goes; sinks, of which there are fewer, stay
        const int64_t oldest = mine.order.front();
        mine.order.pop_front();
        if (const auto at = mine.by_cell.find(oldest); at != mine.by_cell.end() && at->second.sink) mine.order.push_back(oldest);
        else mine.by_cell.erase(oldest);
    }
}

ExactCache::Offer* ExactCache::offered(const CacheTensor& c, int stream, int64_t cell) {
    const auto mine = offers_.find(&c);
    if (mine == offers_.end()) return nullptr;
    const auto at = mine->second.by_cell.find(stream * n_cells_ + cell);
    return at == mine->second.by_cell.end() ? nullptr : &at->second;
}

void ExactCache::withdraw(const CacheTensor& c, int stream, int64_t cell) {
    if (const auto mine = offers_.find(&c); mine != offers_.end()) mine->second.by_cell.erase(stream * n_cells_ + cell);
}

size_t ExactCache::offers(const CacheTensor& c) const {
    const auto mine = offers_.find(&c);
    return mine == offers_.end() ? 0 : mine->second.by_cell.size();
}

void ExactCache::take_offers(std::span<CacheTensor* const> tensors) {
    if (offers_.empty()) return;
    std::vector<CacheTensor*> with_table;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(with_table),
                 [](const CacheTensor* t) { return t->exact() != nullptr; });
    const std::deque<int64_t> order = with_table.empty() ? std::deque<int64_t>{} : offers_[with_table.front()].order;
    for (const int64_t key : order) {
        const int     stream = static_cast<int>(key / n_cells_);
        const int64_t cell   = key % n_cells_;
        if (!std::all_of(with_table.begin(), with_table.end(), [&](const CacheTensor* t) { return offered(*t, stream, cell); })) continue;
        const int slot = batch_.ledger().adopt(stream, cell, offered(*with_table.front(), stream, cell)->sink);
        if (slot < 0) continue;
        for (CacheTensor* t : with_table) {
            const uint16_t* row = offered(*t, stream, cell)->row.data();
            const int       d   = t->head_dim();
            for (int h = 0; h < t->n_embd() / d; h++, row += d)
                t->exact()->write_canonical(stream, h, slot, reinterpret_cast<const uint8_t*>(row));
        }
    }
    offers_.clear();
}

void ExactCache::clear() {
    batch_.ledger().clear();
    offers_.clear();
    tokens_.clear();
    written_.clear();
    batch_.drop_tables();
    n_masks_ = 0;
}

} // namespace tightkv
