// Memory and row access of one operand's tiles.
#include "cache/tile_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "base/pages.h"
#include "cache/numa.h"

namespace tightkv {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

TileStore::TileStore(const Format& f, Operand op, const StoreShape& shape)
    : format_(f), operand_(op), shape_(shape), tile_bytes_(tightkv::tile_bytes(f, shape.head_dim)),
      transforms_(static_cast<size_t>(shape.n_kv_heads), &transform_for(shape.head_dim)) {}

Status TileStore::create(const Format& f, Operand op, const StoreShape& s, std::unique_ptr<TileStore>& out) {
    if (!valid_head_dim(s.head_dim))
        return unsupported("head_dim " + std::to_string(s.head_dim) + " is not supported; accepted: multiples of 32 from 32 to 1024");
    if (s.n_streams < 1 || s.n_kv_heads < 1 || s.n_cells < 1)
        return invalid_argument("a cache needs at least one stream, one KV head and one cell");
    std::unique_ptr<TileStore> store(new TileStore(f, op, s));
    const auto                 tiles = static_cast<uint64_t>(s.n_cells / kTileTokens + (s.n_cells % kTileTokens != 0));
    // f16 rows take what they take; kernels read whole tiles, so the last head has one to spare (never touched, never committed).
    const size_t row_bytes = f.transformed() ? 0 : f.row_bytes(s.head_dim);
    const auto   cells     = static_cast<uint64_t>(s.n_cells);
    if ((row_bytes ? __builtin_mul_overflow(row_bytes, cells, &store->head_bytes_)
                   : __builtin_mul_overflow(store->tile_bytes_, tiles, &store->head_bytes_)) ||
        __builtin_mul_overflow(store->head_bytes_, static_cast<size_t>(s.n_kv_heads), &store->bytes_) ||
        __builtin_mul_overflow(store->bytes_, static_cast<size_t>(s.n_streams), &store->bytes_) || store->bytes_ > PTRDIFF_MAX - kHugePage)
        return {StatusCode::kOutOfMemory, "no memory for a cache of " + std::to_string(s.n_cells) + " cells"};
    // Anonymous memory is zero, and zero bytes are zero rows: nothing is touched before it is written.
    // From the size of a huge page on, tiles start on one and the system may use them.
    const size_t huge = store->bytes_ >= kHugePage ? kHugePage : 0;
    store->mapped_    = store->bytes_ + huge + (row_bytes ? store->tile_bytes_ : 0);
    void* p           = mmap(nullptr, store->mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return {StatusCode::kOutOfMemory, "no memory for a cache of " + std::to_string(store->bytes_) + " bytes"};
    store->map_  = p;
    store->base_ = static_cast<uint8_t*>(p) + (huge ? (huge - reinterpret_cast<uintptr_t>(p) % huge) % huge : 0);
    if (huge) (void)madvise(store->base_, store->bytes_, MADV_HUGEPAGE); // a wish: without it all works as well
    store->spread_ = has_several_memory_nodes();
    out            = std::move(store);
    return {};
}

void TileStore::before_write() {
    if (spread_) std::call_once(spread_once_, spread_pages, base_, bytes_); // other threads wait: a page that is there stays where it is
}

TileStore::~TileStore() {
    if (map_) munmap(map_, mapped_);
}

void TileStore::set_transforms(std::vector<std::shared_ptr<const Transform>> per_head) {
    own_ = std::move(per_head);
    for (size_t h = 0; h < own_.size(); h++) transforms_[h] = own_[h].get();
}

void TileStore::recode(std::vector<std::shared_ptr<const Transform>> per_head, int64_t n) {
    const int d = shape_.head_dim;
    float     x[kMaxHeadDim];
    CodedRow  coded;
    for (int s = 0; format_.transformed() && s < shape_.n_streams; s++)
        for (int h = 0; h < shape_.n_kv_heads; h++)
            for (int64_t c = 0; c < std::min(n, shape_.n_cells); c++) {
                uint8_t* const tile  = tile_of(s, h, c);
                const int      token = static_cast<int>(c % kTileTokens);
                if (tile_scales(format_, d, tile)[token] == 0) continue; // never written, or nothing to keep
                tile_get(format_, operand_, d, tile, token, coded);
                kernels().decode(format_, transform(h), coded, x);
                (void)kernels().encode(format_, *per_head[static_cast<size_t>(h)], x, coded);
                tile_put(format_, operand_, d, tile, token, coded);
            }
    set_transforms(std::move(per_head));
}

// f16 rows follow the rules of the others: NaN and Inf are refused, what is too large is held at the largest value.
RowStatus TileStore::write_exact(uint16_t* row, const float* x) const {
    RowStatus status = RowStatus::kOk;
    for (int i = 0; i < shape_.head_dim; i++) {
        if (!std::isfinite(x[i])) {
            std::memset(row, 0, static_cast<size_t>(shape_.head_dim) * 2);
            return RowStatus::kRefused;
        }
        row[i] = float_to_half(x[i]);
        if ((row[i] & 0x7fff) > kHalfMax) row[i] = static_cast<uint16_t>((row[i] & 0x8000) | kHalfMax), status = RowStatus::kSaturated;
    }
    return status;
}

RowStatus TileStore::write(int stream, int head, int64_t cell, const float* x) {
    const StoreRow row{stream, head, cell, x};
    RowStatus      status;
    write({&row, 1}, &status);
    return status;
}

void TileStore::write(std::span<const StoreRow> rows, RowStatus* status) {
    const int  d       = shape_.head_dim;
    const auto tile_at = [this](const StoreRow& r) { return tile_of(r.stream, r.head, r.cell); };
    const auto token   = [](const StoreRow& r) { return static_cast<int>(r.cell % kTileTokens); };
    before_write();
    if (!format_.transformed()) {
        for (const StoreRow& r : rows)
            *status++ = write_exact(reinterpret_cast<uint16_t*>(tile_at(r)) + static_cast<size_t>(token(r)) * static_cast<size_t>(d), r.x);
        return;
    }
    CodedRow         coded[kEncodeRows];
    CodedRow*        at[kEncodeRows];
    const float*     x[kEncodeRows];
    const Transform* t[kEncodeRows];
    while (!rows.empty()) {
        const auto some = rows.first(std::min<size_t>(rows.size(), kEncodeRows));
        for (size_t i = 0; i < some.size(); i++) at[i] = &coded[i], x[i] = some[i].x, t[i] = &transform(some[i].head);
        kernels().encode_rows(format_, static_cast<int>(some.size()), t, x, at, status);
        for (size_t i = 0; i < some.size(); i++) tile_put(format_, operand_, d, tile_at(some[i]), token(some[i]), coded[i]);
        rows = rows.subspan(some.size()), status += some.size();
    }
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
    kernels().decode(format_, transform(head), coded, x);
}

bool possible_row(const Format& f, int head_dim, const uint8_t* bytes) {
    const uint8_t* const codes = bytes + 2;
    if (f.transformed() && bytes[1] >= 0x7c) return false; // the scale's high byte: no sign, no exponent of all ones
    if (f.kind == FormatKind::Uniform) return std::find(codes, codes + head_dim, uint8_t{0x80}) == codes + head_dim; // -128
    if (f.transformed()) return true;
    for (int i = 0; i < head_dim; i++)
        if ((bytes[2 * i + 1] & 0x7c) == 0x7c) return false;
    return true;
}

void TileStore::write_canonical(int stream, int head, int64_t cell, const uint8_t* bytes) {
    const int  d = shape_.head_dim, token = static_cast<int>(cell % kTileTokens);
    uint8_t*   tile = tile_of(stream, head, cell);
    const bool good = possible_row(format_, d, bytes);
    before_write();
    if (!format_.transformed()) {
        uint16_t* row = reinterpret_cast<uint16_t*>(tile) + static_cast<size_t>(token) * d;
        if (good) std::memcpy(row, bytes, static_cast<size_t>(d) * 2);
        else std::fill_n(row, d, uint16_t{0});
        return;
    }
    CodedRow coded;
    unpack_row(format_, d, bytes, coded);
    if (!good) std::memset(coded.codes, 0, static_cast<size_t>(d)), coded.scale = 0;
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

void TileStore::clear() { zero_pages(base_, bytes_); }

} // namespace tightkv
