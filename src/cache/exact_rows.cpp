// Who keeps an exact row, and which query sees it.
#include "cache/exact_rows.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "cache/mask_bits.h"

namespace tightkv {

ExactLedger::ExactLedger(int n_sink, int n_window, int n_streams, int64_t n_cells)
    : n_sink_(n_sink), n_window_(static_cast<int>(std::min<int64_t>(n_window, n_cells))), n_sink_slots_(exact_sink_slots(n_sink, n_cells)),
      ring_(exact_window_slots(n_window, n_cells)), streams_(static_cast<size_t>(n_streams)) {
    for (Stream& s : streams_) {
        s.slot_of_cell.assign(static_cast<size_t>(n_cells), -1);
        s.slot.resize(static_cast<size_t>(slots()));
    }
}

// A free slot for a sink: a sequence whose first tokens partly stay writes the others again. Without one, the oldest makes room.
int ExactLedger::sink_slot(Stream& s) const {
    for (int& i = s.free_sink; i < n_sink_slots_; i++)
        if (s.slot[static_cast<size_t>(i)].cell < 0) return i;
    const auto older = [](const Entry& a, const Entry& b) { return a.order < b.order; };
    return static_cast<int>(std::min_element(s.slot.begin(), s.slot.begin() + n_sink_slots_, older) - s.slot.begin());
}

// A free slot of the window, such as that of a cell that is being written again; else the oldest makes room.
int ExactLedger::window_slot(const Stream& s) const {
    auto oldest = s.slot.begin() + n_sink_slots_;
    for (auto at = oldest; at != s.slot.end(); ++at) {
        if (at->cell < 0) return static_cast<int>(at - s.slot.begin());
        if (at->order < oldest->order) oldest = at;
    }
    return static_cast<int>(oldest - s.slot.begin());
}

// The oldest holder of its kind makes room.
int ExactLedger::take(Stream& s, int64_t cell, int64_t order, bool sink) {
    if ((sink ? n_sink_slots_ : ring_) == 0) return -1;
    const int slot  = sink ? sink_slot(s) : window_slot(s);
    Entry&    entry = s.slot[static_cast<size_t>(slot)];
    if (entry.cell >= 0) s.slot_of_cell[static_cast<size_t>(entry.cell)] = -1;
    entry                                     = {cell, order, sink};
    s.slot_of_cell[static_cast<size_t>(cell)] = slot;
    return slot;
}

void ExactLedger::begin_batch(std::span<const Token> tokens) {
    batch_.clear();
    for (Stream& s : streams_) {
        s.n_batch = 0;
        s.before.clear();
    }
    for (const Token& t : tokens) { // rows that stay as they are beside the batch
        forget(t.stream, t.cell);
        streams_[static_cast<size_t>(t.stream)].n_batch++;
    }
    for (Stream& s : streams_) { // where one stream needs a table of the batch, all read theirs
        if (few()) break;
        for (int i = 0; i < slots(); i++)
            if (s.slot[static_cast<size_t>(i)].cell >= 0) s.before.push_back({i, s.slot[static_cast<size_t>(i)]});
    }
    std::vector<int> seen(streams_.size(), 0);
    for (const Token& t : tokens) {
        Stream&       s     = streams_[static_cast<size_t>(t.stream)];
        const int     index = seen[static_cast<size_t>(t.stream)]++;
        const int64_t order = s.next_order++;
        const bool    sink  = t.position >= 0 && t.position < n_sink_;
        const bool    kept  = sink || s.n_batch - index <= ring_; // only the last rows of a large batch stay
        batch_.push_back({t.stream, {t.cell, order, sink}, kept ? take(s, t.cell, order, sink) : -1, index});
    }
    // A sink that a later one of the same batch pushed out has lost its slot.
    for (BatchToken& b : batch_)
        if (b.slot >= 0 && slot_of(b.stream, b.entry.cell) != b.slot) b.slot = -1;
}

int ExactLedger::largest_batch() const {
    int most = 0;
    for (const Stream& s : streams_) most = std::max(most, s.n_batch);
    return most;
}

int ExactLedger::adopt(int stream, int64_t cell, bool sink) {
    Stream& s = streams_[static_cast<size_t>(stream)];
    forget(stream, cell);
    return take(s, cell, s.next_order++, sink);
}

void ExactLedger::forget(int stream, int64_t cell) {
    Stream&  s    = streams_[static_cast<size_t>(stream)];
    int32_t& slot = s.slot_of_cell[static_cast<size_t>(cell)];
    if (slot >= 0) s.slot[static_cast<size_t>(slot)] = {}, s.free_sink = std::min(s.free_sink, slot);
    slot = -1;
}

void ExactLedger::clear() {
    for (Stream& s : streams_) {
        std::fill(s.slot_of_cell.begin(), s.slot_of_cell.end(), -1);
        std::fill(s.slot.begin(), s.slot.end(), Entry{});
        s.before.clear();
        s.n_batch = s.free_sink = 0;
    }
    batch_.clear();
}

std::vector<ExactLedger::Entry> ExactLedger::batch_entries(int stream) const {
    std::vector<Entry> all;
    for (const BatchToken& b : batch_)
        if (b.stream == stream) all.push_back(b.entry);
    return all;
}

int64_t ExactLedger::order_of_query(int stream, int token, int n_tokens) const {
    const Stream& s    = streams_[static_cast<size_t>(stream)];
    const int64_t last = s.next_order - 1;
    return n_tokens == s.n_batch ? last - (n_tokens - 1 - token) : last;
}

void ExactMasks::build(const AttentionArgs& a, const ExactLedger& ledger, std::span<const std::vector<ExactLedger::Entry>> entries,
                       int64_t n_rows) {
    n_kv_ = a.n_kv, n_rows_ = n_rows, n_tokens_ = a.n_tokens, n_streams_ = a.n_streams;
    as_bits_ = build_bits(a, ledger, entries);
    if (!as_bits_) build_halves(a, ledger, entries);
}

namespace {

const char* mask_row(const AttentionArgs& a, int s, int t) {
    return static_cast<const char*>(a.mask) + static_cast<size_t>(s) * a.mask_strides.stream +
           static_cast<size_t>(t) * a.mask_strides.token;
}

// The rows of a table that are among the keys: sinks, then the window's, the newest first.
struct Reachable {
    struct Row {
        int64_t place, key, order;
    };
    std::vector<Row> rows;
    size_t           sinks = 0;

    Reachable(const AttentionArgs& a, const std::vector<ExactLedger::Entry>& table) {
        for (const bool sink : {true, false}) {
            for (size_t e = 0; e < table.size(); e++)
                if (const int64_t j = table[e].cell - a.k_cell0; table[e].cell >= 0 && table[e].sink == sink && j >= 0 && j < a.n_kv)
                    rows.push_back({static_cast<int64_t>(e), j, table[e].order});
            if (sink) sinks = rows.size();
        }
        std::sort(rows.begin() + static_cast<ptrdiff_t>(sinks), rows.end(), [](const Row& x, const Row& y) { return x.order > y.order; });
    }
};

// Calls use(place, key) for every row that is exact for the query of this order; visible(key): by its mask.
template <class Visible, class Use> void for_exact(const Reachable& r, const ExactLedger& ledger, int64_t order, Visible visible, Use use) {
    int left = ledger.window();
    for (size_t i = 0; i < r.rows.size(); i++) {
        const Reachable::Row& row = r.rows[i];
        if (i >= r.sinks && row.order <= order) {
            if (left == 0) return;
            if (!visible(row.key)) continue;
            left--;
        }
        use(row.place, row.key);
    }
}

} // namespace

// False: the mask has other values than 0 and -inf.
bool ExactMasks::build_bits(const AttentionArgs& a, const ExactLedger& ledger, Tables entries) {
    const int64_t code_words = words(n_kv_), exact_words = words(n_rows_);
    const size_t  value = a.mask_type == MaskType::kF16 ? sizeof(uint16_t) : sizeof(float);
    code_bits_.resize(static_cast<size_t>(n_streams_ * code_words * n_tokens_));
    exact_bits_.assign(static_cast<size_t>(n_streams_ * exact_words * n_tokens_), 0);
    for (int s = 0; s < a.n_streams; s++) {
        const Reachable reachable(a, entries[static_cast<size_t>(s)]);
        for (int t = 0; t < a.n_tokens; t++) {
            uint64_t* const codes = code_bits_.data() + s * code_words * n_tokens_ + t;
            uint64_t* const exact = exact_bits_.data() + s * exact_words * n_tokens_ + t;
            const char*     row   = a.mask ? mask_row(a, s, t) : nullptr;
            for (int64_t j = 0; j < n_kv_; j += kTileTokens, row += row ? kTileTokens * value : 0) {
                const auto n = static_cast<int>(std::min<int64_t>(kTileTokens, n_kv_ - j));
                if (!mask_word_of(a.mask ? a.mask_type : MaskType::kNone, row, n, codes[j / kTileTokens * n_tokens_])) return false;
            }
            const auto visible = [&](int64_t j) { return (codes[j / kTileTokens * n_tokens_] >> j % kTileTokens & 1) != 0; };
            for_exact(reachable, ledger, ledger.order_of_query(a.k_stream0 + s, t, a.n_tokens), visible, [&](int64_t e, int64_t j) {
                uint64_t& word = codes[j / kTileTokens * n_tokens_];
                exact[e / kTileTokens * n_tokens_] |= (word >> j % kTileTokens & 1) << e % kTileTokens;
                word &= ~(uint64_t{1} << j % kTileTokens);
            });
        }
    }
    return true;
}

void ExactMasks::build_halves(const AttentionArgs& a, const ExactLedger& ledger, Tables entries) {
    const size_t rows = static_cast<size_t>(a.n_streams) * static_cast<size_t>(a.n_tokens);
    codes_.resize(rows * static_cast<size_t>(n_kv_));
    exact_.assign(rows * static_cast<size_t>(n_rows_), kHalfNegInf);
    for (int s = 0; s < a.n_streams; s++) {
        const Reachable reachable(a, entries[static_cast<size_t>(s)]);
        for (int t = 0; t < a.n_tokens; t++) {
            const size_t      row   = static_cast<size_t>(s) * static_cast<size_t>(a.n_tokens) + static_cast<size_t>(t);
            uint16_t* const   codes = codes_.data() + row * static_cast<size_t>(n_kv_);
            uint16_t* const   exact = exact_.data() + row * static_cast<size_t>(n_rows_);
            const char* const mask  = mask_row(a, s, t);
            if (a.mask_type == MaskType::kF16) std::memcpy(codes, mask, static_cast<size_t>(n_kv_) * 2);
            else
                for (int64_t j = 0; j < n_kv_; j++) codes[j] = float_to_half(reinterpret_cast<const float*>(mask)[j]);
            const auto visible = [&](int64_t j) { return codes[j] != kHalfNegInf; };
            for_exact(reachable, ledger, ledger.order_of_query(a.k_stream0 + s, t, a.n_tokens), visible, [&](int64_t e, int64_t j) {
                exact[e] = codes[j];
                codes[j] = kHalfNegInf;
            });
        }
    }
}

void ExactMasks::apply(AttentionArgs& a) const {
    const auto by_token = [&](auto* mask, MaskType type, size_t token, size_t stream, ptrdiff_t step, auto& to) {
        to.mask = mask, to.mask_type = type, to.mask_strides = {token, 0, stream}, to.mask_step = step;
    };
    a.exact.n_rows    = n_rows_;
    const auto tokens = static_cast<size_t>(n_tokens_);
    if (as_bits_) {
        const size_t row = tokens * sizeof(uint64_t);
        by_token(code_bits_.data(), MaskType::kBits, sizeof(uint64_t), row * static_cast<size_t>(words(n_kv_)), n_tokens_, a);
        by_token(exact_bits_.data(), MaskType::kBits, sizeof(uint64_t), row * static_cast<size_t>(words(n_rows_)), n_tokens_, a.exact);
    } else {
        const size_t kv_bytes = static_cast<size_t>(n_kv_) * 2, row_bytes = static_cast<size_t>(n_rows_) * 2;
        by_token(codes_.data(), MaskType::kF16, kv_bytes, kv_bytes * tokens, 1, a);
        by_token(exact_.data(), MaskType::kF16, row_bytes, row_bytes * tokens, 1, a.exact);
    }
}

} // namespace tightkv
