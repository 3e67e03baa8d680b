// The serialised state of one stream, little endian:
//   0   8  magic "tkvstate"
//   8   4  format version (codec/format.h)
//   12  4  length of the specification text, then n_layers, n_kv_heads, head_dim_k, head_dim_v: 4 bytes each
//   32  8  number of cells n
//   40     specification text, no terminator
//   then   canonical rows: [layer][K, V][kv_head][cell]
//   mean=  per layer whose K is compressed and KV head: 1 byte (1: keys have a mean, 2: it is measured to the end), mean [head_dim_k] f32
//   sink=, window=   4 bytes: number of places for exact rows; per place, in order of writing: cell (8; all ones: nobody's), kind (1;
//          0: nobody's, 1: sink, 2: window); f16 rows [layer with exact rows][K, V][kv_head][place]
//   last 8 FNV-1a 64 of everything before (finds accidents, not attackers)
// Bytes from outside are checked completely before the first row is written.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "base/checksum.h"
#include "cache/kv_cache.h"

namespace tightkv {

namespace {

constexpr char   kMagic[8] = {'t', 'k', 'v', 's', 't', 'a', 't', 'e'};
constexpr size_t kHeader = 40, kPlace = 9, kChecksum = 8;

enum MeanKind : uint8_t { kHasMean = 1, kMeasured = 2 };
enum PlaceKind : uint8_t { kNobody, kSink, kWindow };

void put(uint8_t* p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
uint64_t get(const uint8_t* p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= static_cast<uint64_t>(p[i]) << (8 * i);
    return v;
}

float get_float(const uint8_t* p) { return std::bit_cast<float>(static_cast<uint32_t>(get(p, 4))); }

} // namespace

// What lies where in the bytes of a state, and what its exact rows are.
struct KvCache::StateParts {
    int64_t               cells = 0;
    const uint8_t *       rows = nullptr, *means = nullptr, *exact = nullptr; // exact: the f16 rows
    std::vector<SavedRow> places;
};

size_t KvCache::row_group_bytes() const {
    size_t n = 0;
    for (const Layer& l : layers_) n += l.k.rows->format().row_bytes(shape_.head_dim_k) + l.v.rows->format().row_bytes(shape_.head_dim_v);
    return n * static_cast<size_t>(shape_.n_kv_heads);
}

size_t KvCache::mean_bytes() const {
    const auto n = static_cast<size_t>(std::count_if(layers_.begin(), layers_.end(), [this](const Layer& l) { return saves_mean(l); }));
    return n * static_cast<size_t>(shape_.n_kv_heads) * (1 + sizeof(float) * static_cast<size_t>(shape_.head_dim_k));
}

size_t KvCache::exact_row_bytes() const {
    const auto n = static_cast<size_t>(std::count_if(layers_.begin(), layers_.end(), [](const Layer& l) { return l.k.exact != nullptr; }));
    const size_t values = static_cast<size_t>(shape_.head_dim_k) + static_cast<size_t>(shape_.head_dim_v);
    return n * static_cast<size_t>(shape_.n_kv_heads) * values * 2;
}

// As many for every stream, so that the size of a state is known before.
int64_t KvCache::exact_places(int64_t n) const { return std::min<int64_t>(n, exact_->ledger().slots()); }

size_t KvCache::state_bytes(int64_t n) const {
    const size_t exact = exact_ ? 4 + static_cast<size_t>(exact_places(n)) * (kPlace + exact_row_bytes()) : 0;
    return kHeader + state_spec_.size() + row_group_bytes() * static_cast<size_t>(n) + mean_bytes() + exact + kChecksum;
}

uint8_t* KvCache::save_means(uint8_t* at) const {
    for (const Layer& l : layers_)
        for (int h = 0; saves_mean(l) && h < shape_.n_kv_heads; h++) {
            const float* const mean = l.k.rows->transform(h).mean();
            *at++                   = static_cast<uint8_t>((mean ? kHasMean : 0) | (l.mean.done() ? kMeasured : 0));
            for (int i = 0; i < shape_.head_dim_k; i++, at += 4) put(at, mean ? std::bit_cast<uint32_t>(mean[i]) : 0, 4);
        }
    return at;
}

uint8_t* KvCache::save_exact(int stream, int64_t n, uint8_t* at) const {
    std::vector<SavedRow> places = exact_cells(stream, 0, n);
    places.resize(static_cast<size_t>(exact_places(n)));
    put(at, places.size(), 4), at += 4;
    for (const SavedRow& p : places) {
        put(at, static_cast<uint64_t>(p.cell), 8);
        at[8] = p.cell < 0 ? kNobody : p.sink ? kSink : kWindow;
        at += kPlace;
    }
    for (const Layer& l : layers_)
        for (const TileStore* s : {l.k.exact.get(), l.v.exact.get()})
            for (int h = 0; s && h < shape_.n_kv_heads; h++)
                for (const SavedRow& p : places) {
                    const size_t bytes = s->format().row_bytes(s->shape().head_dim);
                    if (p.slot >= 0) s->read_canonical(stream, h, p.slot, at);
                    else std::memset(at, 0, bytes);
                    at += bytes;
                }
    return at;
}

void KvCache::save_state(int stream, int64_t n, uint8_t* out) const {
    std::memcpy(out, kMagic, 8);
    const uint64_t fields[] = {static_cast<uint64_t>(kFormatVersion),    state_spec_.size(),
                               static_cast<uint64_t>(shape_.n_layers),   static_cast<uint64_t>(shape_.n_kv_heads),
                               static_cast<uint64_t>(shape_.head_dim_k), static_cast<uint64_t>(shape_.head_dim_v)};
    for (int i = 0; i < 6; i++) put(out + 8 + 4 * i, fields[i], 4);
    put(out + 32, static_cast<uint64_t>(n), 8);
    std::memcpy(out + kHeader, state_spec_.data(), state_spec_.size());
    uint8_t* at = out + kHeader + state_spec_.size();
    for (const Layer& l : layers_)
        for (const TileStore* s : {l.k.rows.get(), l.v.rows.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = 0; c < n; c++, at += s->format().row_bytes(s->shape().head_dim)) s->read_canonical(stream, h, c, at);
    at = save_means(at);
    if (exact_) at = save_exact(stream, n, at);
    put(at, fnv1a(out, static_cast<size_t>(at - out)), 8);
}

Status KvCache::find_parts(const uint8_t* bytes, size_t size, StateParts& p) const {
    if (size < kHeader + kChecksum || std::memcmp(bytes, kMagic, 8) != 0) return corrupt_data("these bytes are no tightkv state");
    if (get(bytes + 8, 4) != static_cast<uint64_t>(kFormatVersion))
        return corrupt_data("the state has format version " + std::to_string(get(bytes + 8, 4)) + ", this library reads " +
                            std::to_string(kFormatVersion));
    const uint64_t text = get(bytes + 12, 4), cells = get(bytes + 32, 8);
    if (get(bytes + 16, 4) != static_cast<uint64_t>(shape_.n_layers) || get(bytes + 20, 4) != static_cast<uint64_t>(shape_.n_kv_heads) ||
        get(bytes + 24, 4) != static_cast<uint64_t>(shape_.head_dim_k) || get(bytes + 28, 4) != static_cast<uint64_t>(shape_.head_dim_v))
        return corrupt_data("the state belongs to a cache of another shape");
    if (text > size - kHeader - kChecksum) return corrupt_data("the state is truncated");
    const std::string saved(reinterpret_cast<const char*>(bytes) + kHeader, text);
    if (saved != state_spec_) return corrupt_data("the state was saved with cache '" + saved + "', this cache is '" + state_spec_ + "'");
    if (cells > static_cast<uint64_t>(shape_.n_cells))
        return corrupt_data("the state has " + std::to_string(cells) + " cells, this cache " + std::to_string(shape_.n_cells));
    p.cells = static_cast<int64_t>(cells);
    p.rows  = bytes + kHeader + text;
    // A cache of another length has another number of places for exact rows.
    const size_t before   = kHeader + text + row_group_bytes() * static_cast<size_t>(cells) + mean_bytes();
    size_t       expected = before + kChecksum, places = 0;
    if (exact_ && size >= before + 4 + kChecksum) places = get(bytes + before, 4);
    if (exact_) expected += 4 + places * (kPlace + exact_row_bytes());
    if (places > cells || size != expected) return corrupt_data("the state is truncated or too long");
    if (get(bytes + size - kChecksum, 8) != fnv1a(bytes, size - kChecksum)) return corrupt_data("the state's checksum is wrong");
    p.means = bytes + before - mean_bytes();
    for (size_t i = 0; i < places; i++) {
        const uint8_t* const at   = bytes + before + 4 + i * kPlace;
        const uint64_t       cell = get(at, 8);
        if (at[8] > kWindow || (at[8] == kNobody ? cell != UINT64_MAX : cell >= cells))
            return corrupt_data("the state holds an exact row of no cell");
        p.places.push_back(
            {at[8] == kNobody ? -1 : static_cast<int>(i), at[8] == kNobody ? -1 : static_cast<int64_t>(cell), at[8] == kSink});
    }
    p.exact = bytes + before + 4 + places * kPlace;
    return {};
}

Status KvCache::check_parts(const StateParts& p) const {
    const auto possible = [&](const TileStore& s, const uint8_t*& at, size_t n) {
        const size_t bytes = s.format().row_bytes(s.shape().head_dim);
        for (size_t i = 0; i < n * static_cast<size_t>(shape_.n_kv_heads); i++, at += bytes)
            if (!possible_row(s.format(), s.shape().head_dim, at)) return false;
        return true;
    };
    const Status impossible =
        corrupt_data("the state holds a row that no encoder makes (a scale or value that is not finite, or a negative scale)");
    const uint8_t *rows = p.rows, *exact = p.exact, *mean = p.means;
    for (const Layer& l : layers_)
        for (const Rows* r : {&l.k, &l.v})
            if (!possible(*r->rows, rows, static_cast<size_t>(p.cells)) || (r->exact && !possible(*r->exact, exact, p.places.size())))
                return impossible;
    for (const Layer& l : layers_)
        for (int h = 0; saves_mean(l) && h < shape_.n_kv_heads; h++) {
            if (*mean++ > (kHasMean | kMeasured)) return corrupt_data("the state holds a mean of no known kind");
            for (int i = 0; i < shape_.head_dim_k; i++, mean += 4)
                if (!std::isfinite(get_float(mean))) return corrupt_data("the state holds a mean that is not finite");
        }
    std::set<int64_t> cells;
    for (const SavedRow& row : p.places)
        if (row.cell >= 0 && !cells.insert(row.cell).second) return corrupt_data("the state holds two exact rows of one cell");
    return {};
}

// Keys were coded minus the mean that the state's cache had measured. A cache without rows takes that mean as its own; another decodes the
// keys and codes them minus its own mean.
void KvCache::load_rows(int stream, const StateParts& p) {
    const uint8_t *at = p.rows, *mean = p.means;
    float          x[kMaxHeadDim];
    CodedRow       coded;
    for (Layer& l : layers_)
        for (const Operand op : {Operand::K, Operand::V}) {
            TileStore&                                    s = *l.of(op).rows;
            std::vector<std::shared_ptr<const Transform>> saved; // where they differ
            if (op == Operand::K && saves_mean(l)) {
                uint8_t kinds = 0;
                bool    same  = true;
                for (int h = 0; h < shape_.n_kv_heads; h++) {
                    const uint8_t kind = *mean++;
                    kinds |= kind;
                    std::vector<float> m((kind & kHasMean) ? static_cast<size_t>(shape_.head_dim_k) : 0);
                    for (size_t i = 0; i < m.size(); i++) m[i] = get_float(mean + 4 * i);
                    mean += 4 * static_cast<size_t>(shape_.head_dim_k);
                    const float* const own = s.transform(h).mean();
                    same &= m.empty() ? own == nullptr : own && std::equal(m.begin(), m.end(), own);
                    saved.push_back(std::make_shared<const Transform>(s.transform(h).with_mean(std::move(m))));
                }
                const bool take = fresh_ && (kinds & kHasMean);
                if (take) s.set_transforms(saved);
                if (take && (kinds & kMeasured)) l.mean = SelfCalibration(0);
                if (take || same) saved.clear();
            }
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = 0; c < p.cells; c++, at += s.format().row_bytes(s.shape().head_dim)) {
                    if (saved.empty()) {
                        s.write_canonical(stream, h, c, at);
                        continue;
                    }
                    unpack_row(s.format(), s.shape().head_dim, at, coded);
                    kernels().decode(s.format(), *saved[static_cast<size_t>(h)], coded, x);
                    (void)s.write(stream, h, c, x);
                }
            for (int64_t c = 0; c < p.cells && op == Operand::K && !l.mean.done(); c++) l.mean.written(stream, c);
        }
}

void KvCache::load_exact(int stream, const StateParts& p) {
    for (int64_t c = 0; c < p.cells; c++) exact_->ledger().forget(stream, c);
    for (size_t i = 0; i < p.places.size(); i++) {
        if (p.places[i].cell < 0) continue;
        const int      slot = exact_->ledger().adopt(stream, p.places[i].cell, p.places[i].sink);
        const uint8_t* at   = p.exact;
        for (Layer& l : layers_)
            for (TileStore* s : {l.k.exact.get(), l.v.exact.get()}) {
                if (!s) continue;
                const size_t bytes = s->format().row_bytes(s->shape().head_dim);
                for (int h = 0; h < shape_.n_kv_heads; h++, at += bytes * p.places.size())
                    if (slot >= 0) s->write_canonical(stream, h, slot, at + i * bytes);
            }
    }
}

Status KvCache::load_state(int stream, const uint8_t* bytes, size_t size, int64_t& n) {
    StateParts p;
    if (Status s = find_parts(bytes, size, p); !s.ok()) return s;
    if (Status s = check_parts(p); !s.ok()) return s;
    end_batch();
    load_rows(stream, p);
    if (exact_) load_exact(stream, p);
    fresh_ = false;
    n      = p.cells;
    return {};
}

} // namespace tightkv
