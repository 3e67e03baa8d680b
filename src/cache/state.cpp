// The serialised state of one stream, little endian:
//   0   8  magic "tkvstate"
//   8   4  format version (codec/format.h)
//   12  4  length of the specification text, then n_layers, n_kv_heads, head_dim_k, head_dim_v: 4 bytes each
//   32  8  number of cells n
//   40     specification text, no terminator
//   then   canonical rows: [layer][K, V][kv_head][cell]
//   last 8 FNV-1a 64 of everything before (finds accidents, not attackers)
// Bytes from outside are checked completely before the first row is written.
#include <cstring>

#include "base/checksum.h"
#include "cache/kv_cache.h"

namespace tightkv {

namespace {

constexpr char   kMagic[8] = {'t', 'k', 'v', 's', 't', 'a', 't', 'e'};
constexpr size_t kHeader = 40, kChecksum = 8;

void put(uint8_t* p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
uint64_t get(const uint8_t* p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= static_cast<uint64_t>(p[i]) << (8 * i);
    return v;
}

} // namespace

size_t KvCache::row_group_bytes() const {
    size_t n = 0;
    for (const Layer& l : layers_) n += l.k->format().row_bytes(shape_.head_dim_k) + l.v->format().row_bytes(shape_.head_dim_v);
    return n * static_cast<size_t>(shape_.n_kv_heads);
}

size_t KvCache::state_bytes(int64_t n) const {
    return kHeader + state_spec_.size() + row_group_bytes() * static_cast<size_t>(n) + kChecksum;
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
        for (const TileStore* s : {l.k.get(), l.v.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = 0; c < n; c++, at += s->format().row_bytes(s->shape().head_dim)) s->read_canonical(stream, h, c, at);
    put(at, fnv1a(out, static_cast<size_t>(at - out)), 8);
}

Status KvCache::load_state(int stream, const uint8_t* bytes, size_t size, int64_t& n) {
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
    if (size != state_bytes(static_cast<int64_t>(cells))) return corrupt_data("the state is truncated or too long");
    if (get(bytes + size - kChecksum, 8) != fnv1a(bytes, size - kChecksum)) return corrupt_data("the state's checksum is wrong");
    const uint8_t* const rows = bytes + kHeader + text;
    const uint8_t*       at   = rows;
    for (const Layer& l : layers_)
        for (const TileStore* s : {l.k.get(), l.v.get()})
            for (uint64_t i = 0; i < cells * static_cast<uint64_t>(shape_.n_kv_heads); i++) {
                if (!possible_row(s->format(), s->shape().head_dim, at))
                    return corrupt_data(
                        "the state holds a row that no encoder makes (a scale or value that is not finite, or a negative scale)");
                at += s->format().row_bytes(s->shape().head_dim);
            }
    n  = static_cast<int64_t>(cells);
    at = rows;
    for (Layer& l : layers_)
        for (TileStore* s : {l.k.get(), l.v.get()})
            for (int h = 0; h < shape_.n_kv_heads; h++)
                for (int64_t c = 0; c < n; c++, at += s->format().row_bytes(s->shape().head_dim)) s->write_canonical(stream, h, c, at);
    return {};
}

} // namespace tightkv
