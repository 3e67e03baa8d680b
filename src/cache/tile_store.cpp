// Memory and row access of one operand's tiles.
#include "cache/tile_store.h"

#include <sys/mman.h>

#include <cstring>

#include "base/half.h"

namespace tightkv {

TileStore::TileStore(const Format& f, Operand op, const StoreShape& shape) : format_(f), operand_(op), shape_(shape) {
    tile_bytes_ = tightkv::tile_bytes(f, shape.head_dim);
    head_bytes_ = tile_bytes_ * static_cast<size_t>((shape.n_cells + kTileTokens - 1) / kTileTokens);
    bytes_      = head_bytes_ * static_cast<size_t>(shape.n_kv_heads) * static_cast<size_t>(shape.n_streams);
}

Status TileStore::create(const Format& f, Operand op, const StoreShape& s, std::unique_ptr<TileStore>& out) {
    if (!valid_head_dim(s.head_dim))
        return unsupported("head_dim " + std::to_string(s.head_dim) + " is not supported; accepted: multiples of 32 from 32 to 1024");
    if (s.n_streams < 1 || s.n_kv_heads < 1 || s.n_cells < 1)
        return invalid_argument("a cache needs at least one stream, one KV head and one cell");
    std::unique_ptr<TileStore> store(new TileStore(f, op, s));
    // Anonymous memory is zero, and zero bytes are zero rows: nothing is touched before it is written.
    void* p = mmap(nullptr, store->bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return {StatusCode::kOutOfMemory, "no memory for a cache of " + std::to_string(store->bytes_) + " bytes"};
    store->base_ = static_cast<uint8_t*>(p);
    out          = std::move(store);
    return {};
}

TileStore::~TileStore() {
    if (base_) munmap(base_, bytes_);
}

RowStatus TileStore::write(int stream, int head, int64_t cell, const float* x) {
    const int d = shape_.head_dim, token = static_cast<int>(cell % kTileTokens);
    uint8_t*  tile = tile_of(stream, head, cell);
    if (!format_.transformed()) {
        uint16_t* row = reinterpret_cast<uint16_t*>(tile) + static_cast<size_t>(token) * d;
        for (int i = 0; i < d; i++) row[i] = float_to_half(x[i]);
        return RowStatus::kOk;
    }
    CodedRow        coded;
    const RowStatus status = kernels().encode(format_, transform_for(d), x, coded);
    tile_put(format_, operand_, d, tile, token, coded);
    return status;
}

void TileStore::read(int stream, int head, int64_t cell, float* x) const {
    const int      d = shape_.head_dim, token = static_cast<int>(cell % kTileTokens);
    const uint8_t* tile = tile_of(stream, head, cell);
    if (!format_.transformed()) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(tile) + static_cast<size_t>(token) * d;
        for (int i = 0; i < d; i++) x[i] = half_to_float(row[i]);
        return;
    }
    CodedRow coded;
    tile_get(format_, operand_, d, tile, token, coded);
    kernels().decode(format_, transform_for(d), coded, x);
}

void TileStore::write_canonical(int stream, int head, int64_t cell, const uint8_t* bytes) {
    const int d = shape_.head_dim, token = static_cast<int>(cell % kTileTokens);
    uint8_t*  tile = tile_of(stream, head, cell);
    if (!format_.transformed()) {
        std::memcpy(tile + static_cast<size_t>(token) * d * 2, bytes, static_cast<size_t>(d) * 2);
        return;
    }
    CodedRow coded;
    unpack_row(format_, d, bytes, coded);
    tile_put(format_, operand_, d, tile, token, coded);
}

void TileStore::read_canonical(int stream, int head, int64_t cell, uint8_t* bytes) const {
    const int      d = shape_.head_dim, token = static_cast<int>(cell % kTileTokens);
    const uint8_t* tile = tile_of(stream, head, cell);
    if (!format_.transformed()) {
        std::memcpy(bytes, tile + static_cast<size_t>(token) * d * 2, static_cast<size_t>(d) * 2);
        return;
    }
    CodedRow coded;
    tile_get(format_, operand_, d, tile, token, coded);
    pack_row(format_, d, coded, bytes);
}

void TileStore::clear() { madvise(base_, bytes_, MADV_DONTNEED); }

} // namespace tightkv
