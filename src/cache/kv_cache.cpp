// Layers of a cache, their rows one by one and in batches.
#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/checksum.h"
#include "base/half.h"
#include "cache/exact_slots.h"
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

// Whole tiles of them are counted in int.
constexpr int64_t kMaxCells = INT32_MAX - (kTileTokens - 1);
// The ledger of exact rows has 4 bytes for every cell, and touches them.
constexpr int64_t kMaxLedgerCells = int64_t{1} << 28;

// Canonical bytes of a row where they are not there already: cells that were never written take no memory.
void replace(TileStore& s, int stream, int head, int64_t cell, const uint8_t* bytes) {
    uint8_t      there[kMaxHeadDim * 2];
    const size_t n = s.format().row_bytes(s.shape().head_dim);
    s.read_canonical(stream, head, cell, there);
    if (std::memcmp(there, bytes, n) != 0) s.write_canonical(stream, head, cell, bytes);
}

} // namespace

Status KvCache::create(const CacheSpec& spec, const CacheShape& s, std::unique_ptr<KvCache>& out) {
    if (s.n_layers < 1 || s.n_layers > 100000) return invalid_argument("n_layers must be 1 to 100000");
    if (s.n_kv_heads < 1 || s.n_streams < 1 || s.n_cells < 1 || s.n_cells > kMaxCells)
        return invalid_argument("a cache needs at least one KV head, one stream and 1 to " + std::to_string(kMaxCells) + " cells");
    if (spec.self_profile)
        return unsupported("profile=auto needs the queries of a model's attention, which this interface does not see; accepted here: "
                           "profile=FILE of tightkv calibrate. The llama.cpp adapter takes profile=auto");
    if ((spec.sink || spec.window) && s.n_cells > kMaxLedgerCells / s.n_streams)
        return unsupported("sink= and window= take caches of up to " + std::to_string(kMaxLedgerCells) + " cells in all streams");
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
    bool any_exact     = false;
    for (int i = 0; i < s.n_layers; i++) {
        Layer                     layer;
        const bool                exact = spec.exact_rows(i, s.n_layers);
        const LayerProfile* const p     = profile ? &profile->layers[static_cast<size_t>(i)] : nullptr;
        for (const Operand op : {Operand::K, Operand::V}) {
            StoreShape shape{s.n_streams, s.n_kv_heads, op == Operand::K ? s.head_dim_k : s.head_dim_v, s.n_cells};
            Rows&      r = layer.of(op);
            if (Status e = TileStore::create(format(chosen_format(spec, p, op, i, s.n_layers)), op, shape, r.rows); !e.ok()) return e;
            if (p) r.rows->set_transforms(profile->transforms(*p, op, op == Operand::K || spec.sink > 0)); // of values beside sink rows
            shape.n_cells = exact_slots(spec.sink, spec.window, s.n_cells);
            if (!exact) continue;
            if (Status e = TileStore::create(format(FormatId::f16), op, shape, r.exact); !e.ok()) return e;
        }
        any_exact |= exact;
        if (cache->saves_mean(layer)) layer.mean = SelfCalibration(spec.mean);
        cache->layers_.push_back(std::move(layer));
    }
    if (any_exact) cache->exact_ = std::make_unique<ExactBatch>(spec.sink, spec.window, s.n_streams, s.n_cells);
    cache->bits_per_value_ = profile ? tightkv::bits_per_value(spec, *profile, s.n_cells)
                                     : spec.bits_per_value(s.n_layers, s.head_dim_k, s.head_dim_v, s.n_cells);
    out                    = std::move(cache);
    return {};
}

size_t KvCache::bytes() const {
    size_t n = 0;
    for (const Layer& l : layers_)
        for (const Rows* r : {&l.k, &l.v}) n += r->rows->bytes() + (r->exact ? r->exact->bytes() : 0);
    return n;
}

void KvCache::clear() {
    for (Layer& l : layers_) {
        for (Rows* r : {&l.k, &l.v}) {
            r->rows->clear();
            if (r->exact) r->exact->clear();
        }
        l.mean.clear();
    }
    if (exact_) exact_->ledger().clear();
    end_batch();
    fresh_ = true;
}

void KvCache::begin_batch(std::vector<Token> tokens) {
    tokens_.clear(); // and stays so where memory runs out below
    for (Layer& l : layers_) l.k.appended = l.v.appended = false;
    if (exact_) {
        exact_->drop_tables();
        exact_->ledger().begin_batch(tokens);
    }
    tokens_ = std::move(tokens);
}

void KvCache::end_batch() { begin_batch({}); }

// n rows, of which row(i) says where they go; up to kEncodeRows of them must be there at a time.
template <class Row> void KvCache::write_rows(TileStore& s, size_t n, const Row& row) {
    StoreRow  rows[kEncodeRows];
    RowStatus status[kEncodeRows];
    for (size_t i = 0; i < n;) {
        size_t some = 0;
        for (; some < kEncodeRows && i < n; some++, i++) rows[some] = row(i);
        s.write({rows, some}, status);
        refused_rows_ += std::count(status, status + some, RowStatus::kRefused);
    }
}

void KvCache::append(int layer, Operand op, const float* x) {
    Layer&             l = layers_[static_cast<size_t>(layer)];
    Rows&              r = l.of(op);
    const auto         d = static_cast<size_t>(r.rows->shape().head_dim), token = d * static_cast<size_t>(shape_.n_kv_heads);
    std::vector<float> kept;
    if (r.exact) {
        kept.resize(tokens_.size() * token);
        round_to_halves(x, kept.data(), kept.size());
        x = kept.data();
        if (!exact_->prepare_write(*r.exact)) throw std::bad_alloc();
    }
    fresh_     = false;
    r.appended = true;
    if (op == Operand::K && !l.mean.done()) {
        for (size_t i = 0; i < tokens_.size(); i++)
            l.mean.observe(*r.rows, tokens_[i].stream, tokens_[i].cell, tokens_[i].position, x + i * token);
        (void)l.mean.update(*r.rows);
    }
    const auto heads = static_cast<size_t>(shape_.n_kv_heads);
    write_rows(*r.rows, tokens_.size() * heads, [&](size_t i) {
        const Token& t = tokens_[i / heads];
        const int    h = static_cast<int>(i % heads);
        if (r.exact) exact_->write_row(*r.exact, i / heads, h, x + i * d);
        return StoreRow{t.stream, h, t.cell, x + i * d};
    });
}

void KvCache::attach_exact(int layer, AttentionArgs& a, ExactMasks& masks) const {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    if (!l.k.exact) return;
    if (static_cast<double>(a.n_streams) * a.n_tokens * static_cast<double>(a.n_kv) > 0x1p50) throw std::bad_alloc();
    std::vector<std::vector<ExactLedger::Entry>> entries;
    const bool                                   batch = exact_->choose_tables(a, *l.k.exact, *l.v.exact);
    const int64_t                                rows  = exact_->entries(a, batch, entries);
    if (rows == 0) return;
    masks.build(a, exact_->ledger(), entries, rows);
    masks.apply(a);
}

void KvCache::write(int layer, Operand op, int stream, int64_t cell, const float* x) {
    Layer&    l    = layers_[static_cast<size_t>(layer)];
    Rows&     r    = l.of(op);
    const int d    = r.rows->shape().head_dim;
    const int slot = r.exact ? exact_->ledger().slot_of(stream, cell) : -1;
    float     kept[kEncodeRows][kMaxHeadDim];
    write_rows(*r.rows, static_cast<size_t>(shape_.n_kv_heads), [&](size_t i) {
        const int    h   = static_cast<int>(i);
        const float* row = x + i * static_cast<size_t>(d);
        if (r.exact) {
            round_to_halves(row, kept[i % kEncodeRows], static_cast<size_t>(d));
            row = kept[i % kEncodeRows];
        }
        if (slot >= 0) (void)r.exact->write(stream, h, slot, row);
        return StoreRow{stream, h, cell, row};
    });
    if (r.exact) exact_->drop_table(*r.exact);
    if (op == Operand::K && !l.mean.done()) l.mean.written(stream, cell);
    fresh_ = false;
}

void KvCache::read(int layer, Operand op, int stream, int64_t cell, float* x) const {
    const Rows&      r    = layers_[static_cast<size_t>(layer)].of(op);
    const int        slot = r.exact ? exact_->ledger().slot_of(stream, cell) : -1;
    const TileStore& s    = slot >= 0 ? *r.exact : *r.rows;
    for (int h = 0; h < shape_.n_kv_heads; h++, x += s.shape().head_dim) s.read(stream, h, slot >= 0 ? slot : cell, x);
}

std::vector<KvCache::SavedRow> KvCache::exact_cells(int stream, int64_t first, int64_t n) const {
    if (!exact_) return {};
    const auto            entries = exact_->ledger().entries(stream);
    std::vector<SavedRow> rows;
    for (size_t i = 0; i < entries.size(); i++)
        if (entries[i].cell >= first && entries[i].cell < first + n)
            rows.push_back({static_cast<int>(i), entries[i].cell, entries[i].sink});
    const auto order = [&](const SavedRow& r) { return entries[static_cast<size_t>(r.slot)].order; };
    std::sort(rows.begin(), rows.end(), [&](const SavedRow& a, const SavedRow& b) { return order(a) < order(b); });
    return rows;
}

void KvCache::copy(int from, int to, int64_t first, int64_t n) {
    uint8_t row[kMaxHeadDim * 2];
    end_batch();
    fresh_ = false;
    for (Layer& l : layers_) {
        for (TileStore* s : {l.k.rows.get(), l.v.rows.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = first; c < first + n; c++) {
                    s->read_canonical(from, h, c, row);
                    replace(*s, to, h, c, row);
                }
        for (int64_t c = first; c < first + n && !l.mean.done(); c++) l.mean.written(to, c);
    }
    if (!exact_) return;
    for (int64_t c = first; c < first + n; c++) exact_->ledger().forget(to, c);
    for (const SavedRow& r : exact_cells(from, first, n)) {
        const int slot = exact_->ledger().adopt(to, r.cell, r.sink);
        for (Layer& l : layers_)
            for (TileStore* s : {l.k.exact.get(), l.v.exact.get()})
                for (int h = 0; s && slot >= 0 && h < shape_.n_kv_heads; h++) {
                    s->read_canonical(from, h, r.slot, row);
                    s->write_canonical(to, h, slot, row);
                }
    }
}

void KvCache::remove(int stream, int64_t first, int64_t n) {
    const std::vector<uint8_t> zeros(kMaxHeadDim * 2);
    end_batch();
    for (Layer& l : layers_) {
        for (TileStore* s : {l.k.rows.get(), l.v.rows.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = first; c < first + n; c++) replace(*s, stream, h, c, zeros.data());
        for (int64_t c = first; c < first + n && !l.mean.done(); c++) l.mean.written(stream, c);
    }
    for (int64_t c = first; exact_ && c < first + n; c++) exact_->ledger().forget(stream, c);
}

} // namespace tightkv
