// One cache tensor: learning its head_dim, and its rows as the f16 bytes the host believes in.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/half.h"
#include "ggml/exact_cache.h"
#include "ggml/key_rope.h"
#include "ggml/kv_buffer.h"
#include "ggml/model_profile.h"
#include "ggml/self_profile.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

// Before a graph has told: the commonest head_dims first.
int64_t likely_head_dim(int64_t n_embd) {
    int64_t d = 128;
    while (d > kMinHeadDim && n_embd % d != 0) d /= 2;
    return d;
}

} // namespace

CacheTensor::CacheTensor(const ggml_tensor* t, Operand op, const TensorPlan& plan)
    : n_embd_(t->ne[0]), n_cells_(t->ne[1]), n_streams_(t->ne[2] * t->ne[3]), address_(t->data), name_(t->name), block_(block_of(t)),
      operand_(op), plan_(plan), calibration_(calibrates() ? plan.mean_tokens : 0) {}

CacheTensor::~CacheTensor() { drop_stores(); }

// Out of the books and out of memory.
void CacheTensor::drop_stores() {
    for (std::unique_ptr<TileStore>* s : {&store_, &exact_})
        if (*s) stats().cache_bytes -= static_cast<int64_t>((*s)->bytes()), s->reset();
}

size_t CacheTensor::packed_bytes() const {
    if (store_) return store_->bytes() + (exact_ ? exact_->bytes() : 0);
    if (mode_ == CacheMode::kPlain) return static_cast<size_t>(n_embd_ * n_cells_ * n_streams_) * 2;
    const int64_t d = layer_ ? layer_->head_dim(operand_) : likely_head_dim(n_embd_);
    const auto    n = static_cast<size_t>(n_embd_ / d * n_streams_);
    if (!plan_.format.transformed()) return n * static_cast<size_t>((n_cells_ + plan_.exact_slots) * d) * 2;
    return n * (tile_bytes(plan_.format, static_cast<int>(d)) * static_cast<size_t>((n_cells_ + kTileTokens - 1) / kTileTokens) +
                static_cast<size_t>(plan_.exact_slots * d) * 2);
}

void CacheTensor::learn_head_dim(int64_t d) {
    const std::lock_guard guard(lock_);
    if (mode_ == CacheMode::kPlain || (store_ && store_->shape().head_dim == d)) return;
    if (d <= 0 || d > kMaxHeadDim || !valid_head_dim(static_cast<int>(d)) || n_embd_ % d != 0) {
        if (store_) return; // already compressed under another head_dim: this view goes the generic way
        say_once("cache left to the host as f16: head_dim " + std::to_string(d) +
                 " is not supported; accepted: multiples of 32 from 32 to 1024");
        mode_ = CacheMode::kPlain;
        return;
    }
    StoreShape shape;
    shape.n_streams = static_cast<int>(n_streams_), shape.n_kv_heads = static_cast<int>(n_embd_ / d), shape.head_dim = static_cast<int>(d),
    shape.n_cells = n_cells_;
    std::unique_ptr<TileStore> fresh, table;
    Status                     s = make_store(shape, fresh);
    if (s.ok() && plan_.exact_slots > 0) {
        StoreShape slots = shape;
        slots.n_cells    = plan_.exact_slots;
        s                = TileStore::create(tightkv::format(FormatId::f16), operand_, slots, table);
    }
    if (!s.ok()) {
        if (store_) return;
        say_once("cache left to the host as f16: " + s.message());
        mode_ = CacheMode::kPlain;
        return;
    }
    if (store_) { // rows were written before any graph told us the head_dim: carry them over
        std::vector<float> x(static_cast<size_t>(n_embd_));
        const int          old_d = store_->shape().head_dim, old_heads = store_->shape().n_kv_heads;
        for (int stream = 0; stream < shape.n_streams; stream++)
            for (int64_t c = 0; c < n_cells_; c++) {
                for (int h = 0; h < old_heads; h++) store_->read(stream, h, c, x.data() + static_cast<ptrdiff_t>(h) * old_d);
                for (int h = 0; h < shape.n_kv_heads; h++) (void)fresh->write(stream, h, c, x.data() + static_cast<ptrdiff_t>(h) * d);
            }
        drop_stores();
    }
    store_ = std::move(fresh), exact_ = std::move(table);
    stats().add_cache_bytes(static_cast<int64_t>(packed_bytes()));
    mode_ = CacheMode::kTiles;
}

// With the profile's transforms, where there are any for this head_dim.
Status CacheTensor::make_store(const StoreShape& shape, std::unique_ptr<TileStore>& out) const {
    if (Status s = TileStore::create(plan_.format, operand_, shape, out); !s.ok()) return s;
    if (!layer_) return {};
    if (const Status s = Profile::fits(*layer_, operand_, shape.head_dim, n_embd_); !s.ok()) {
        say_once(s.message() + ": it goes on without the profile");
        return {};
    }
    out->set_transforms(profile_->transforms(*layer_, operand_, takes_means()));
    return {};
}

void CacheTensor::set_profile(std::shared_ptr<const Profile> profile, const LayerProfile* layer) {
    profile_ = std::move(profile), layer_ = layer;
}

void CacheTensor::drop_profile(const Format& f) {
    const std::lock_guard guard(lock_);
    layer_       = nullptr;
    plan_.format = f;
    if (calibrates()) calibration_ = SelfCalibration(plan_.mean_tokens);
    if (!store_) return;
    const StoreShape&          shape = store_->shape();
    std::unique_ptr<TileStore> fresh;
    if (const Status s = make_store(shape, fresh); !s.ok()) throw std::runtime_error(s.message());
    std::vector<uint8_t> bytes(store_->format().row_bytes(shape.head_dim));
    std::vector<float>   x(static_cast<size_t>(shape.head_dim));
    for (int64_t r = 0; r < rows(); r++) {
        const Cell c = cell_of(r);
        store_->read_canonical(c.stream, c.head, c.cell, bytes.data());
        if (std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; })) continue; // never written
        store_->read(c.stream, c.head, c.cell, x.data());
        (void)fresh->write(c.stream, c.head, c.cell, x.data());
    }
    stats().cache_bytes -= static_cast<int64_t>(store_->bytes());
    stats().add_cache_bytes(static_cast<int64_t>(fresh->bytes()));
    store_ = std::move(fresh);
}

void CacheTensor::make_plain(const std::string& why) {
    const std::lock_guard guard(lock_);
    if (mode_ == CacheMode::kPlain) return;
    if (store_) { // bytes written so far move to the tensor's address
        std::vector<float> x(static_cast<size_t>(store_->shape().head_dim));
        uint16_t*          out = static_cast<uint16_t*>(address_);
        for (int64_t r = 0; r < rows(); r++) {
            const Cell c = cell_of(r);
            store_->read(c.stream, c.head, c.cell, x.data());
            for (float v : x) *out++ = storable_half(v);
        }
        drop_stores();
    }
    mode_ = CacheMode::kPlain;
    say_once(why);
}

void CacheTensor::decide() {
    if (mode_ != CacheMode::kUndecided) return;
    learn_head_dim(layer_ ? layer_->head_dim(operand_) : likely_head_dim(n_embd_));
}

CacheTensor::Cell CacheTensor::cell_of(int64_t head_row) const {
    const int64_t heads = store_->shape().n_kv_heads;
    return {static_cast<int>(head_row / heads / n_cells_), static_cast<int>(head_row % heads), head_row / heads % n_cells_};
}

void CacheTensor::write_rows(std::span<const StoreRow> rows) {
    RowStatus status[kEncodeRows];
    store_->write(rows, status);
    for (size_t i = 0; i < rows.size(); i++)
        if (status[i] == RowStatus::kRefused) {
            stats().refused_rows++;
            say_once("a row with NaN or Inf was refused and stored as zeros (counted; said once)");
        } else if (status[i] == RowStatus::kSaturated) {
            stats().saturated_rows++;
        }
}

void CacheTensor::read(size_t offset, void* dst, size_t size) {
    decide();
    if (mode_ == CacheMode::kPlain) {
        std::memcpy(dst, static_cast<const char*>(address_) + offset, size);
        return;
    }
    const size_t row_bytes = static_cast<size_t>(head_dim()) * 2;
    uint16_t     half[kMaxHeadDim];
    for (size_t at = offset, end = offset + size; at < end;) {
        const size_t row = at / row_bytes, from = at % row_bytes, n = std::min(end - at, row_bytes - from);
        const Cell   c = cell_of(static_cast<int64_t>(row));
        read_halves(c, half);
        std::memcpy(static_cast<char*>(dst) + (at - offset), reinterpret_cast<const char*>(half) + from, n);
        at += n;
        stats().rows_read++;
    }
}

void CacheTensor::write(size_t offset, const void* src, size_t size) {
    decide();
    if (mode_ == CacheMode::kPlain) {
        std::memcpy(static_cast<char*>(address_) + offset, src, size);
        return;
    }
    const size_t row_bytes = static_cast<size_t>(head_dim()) * 2;
    float        x[kMaxHeadDim];
    uint16_t     half[kMaxHeadDim];
    for (size_t at = offset, end = offset + size; at < end;) {
        const size_t row = at / row_bytes, from = at % row_bytes, n = std::min(end - at, row_bytes - from);
        const Cell   c = cell_of(static_cast<int64_t>(row));
        if (n < row_bytes) read_halves(c, half); // part of a row: the rest stays
        std::memcpy(reinterpret_cast<char*>(half) + from, static_cast<const char*>(src) + (at - offset), n);
        for (int i = 0; i < head_dim(); i++) x[i] = half_to_float(half[i]);
        write_rows({{StoreRow{c.stream, c.head, c.cell, x}}});
        if (const int slot = exact_slot(c); slot >= 0)
            exact_->write_canonical(c.stream, c.head, slot, reinterpret_cast<const uint8_t*>(half));
        if (auto* offer = exact_ ? plan_.exact->offered(*this, c.stream, c.cell) : nullptr)
            std::copy_n(half, head_dim(), offer->row.begin() + static_cast<ptrdiff_t>(c.head) * head_dim());
        written(c);
        at += n;
        stats().rows_written++;
    }
}

// The first rows of what is restored are a sequence's first ones, the last its newest: that is how the host saves a sequence.
void CacheTensor::restore(size_t offset, const void* src, size_t size) {
    write(offset, src, size);
    const size_t cell_bytes = static_cast<size_t>(n_embd_) * 2;
    if (!exact_ || offset % cell_bytes || size % cell_bytes) return;
    const auto  n = static_cast<int64_t>(size / cell_bytes), first = static_cast<int64_t>(offset / cell_bytes);
    ExactCache& exact = *plan_.exact;
    for (int64_t i = 0; i < n; i++) {
        const bool sink = exact.offers(*this) < static_cast<size_t>(exact.n_sink()); // also where rows come one by one
        if (sink || i >= n - exact.n_window())
            exact.offer(*this, static_cast<int>((first + i) / n_cells_), (first + i) % n_cells_, sink,
                        static_cast<const uint16_t*>(src) + i * n_embd_);
    }
}

void CacheTensor::write_copy(const Cell& c, const uint8_t* canonical) {
    store_->write_canonical(c.stream, c.head, c.cell, canonical);
    written(c);
}

void CacheTensor::written(const Cell& c) {
    if (calibrating()) calibration_.written(c.stream, c.cell);
    if (collector()) kept_.written(c.stream, c.cell);
}

SelfProfile* CacheTensor::collector() const { return plan_.self_profile && !plan_.self_profile->done() ? plan_.self_profile : nullptr; }

void CacheTensor::use_self_profile(std::vector<std::shared_ptr<const Transform>> transforms) {
    kept_.recode(*store_, std::move(transforms));
    calibration_ = SelfCalibration(0);
}

void CacheTensor::clear() {
    if (store_) store_->clear();
    calibration_.clear();
    kept_.clear();
}

int CacheTensor::exact_slot(const Cell& c) const { return exact_ ? plan_.exact->slot_of(c.stream, c.cell) : -1; }

// A row as the host would have it: [head_dim] f16.
void CacheTensor::read_halves(const Cell& c, uint16_t* half) const {
    if (const int slot = exact_slot(c); slot >= 0) {
        exact_->read_canonical(c.stream, c.head, slot, reinterpret_cast<uint8_t*>(half));
        return;
    }
    if (const auto* offer = exact_ ? plan_.exact->offered(*this, c.stream, c.cell) : nullptr) {
        std::copy_n(offer->row.begin() + static_cast<ptrdiff_t>(c.head) * head_dim(), head_dim(), half);
        return;
    }
    float x[kMaxHeadDim];
    store_->read(c.stream, c.head, c.cell, x);
    for (int i = 0; i < head_dim(); i++) half[i] = storable_half(x[i]);
}

int64_t CacheTensor::first_cell(const ggml_tensor* view) const {
    return static_cast<int64_t>(offset_of(view) / (static_cast<size_t>(n_embd_) * 2));
}

void CacheTensor::as_kept(const float* x, float* kept, int64_t n) const {
    if (exact_) round_to_halves(x, kept, static_cast<size_t>(n));
    else std::copy_n(x, n, kept);
}

bool CacheTensor::each_row(const ggml_tensor* node, const std::function<void(size_t, int, int64_t, std::span<const float>)>& f) const {
    const ggml_tensor *rows = node->src[0], *cells = node->src[1];
    std::vector<float> x(static_cast<size_t>(n_embd_));
    for (int64_t i = 0; i < rows->ne[1]; i++) {
        const int64_t cell = first_cell(node) + row_index(cells, i);
        if (cell < 0 || cell >= n_cells_ * n_streams_) return false;
        as_kept(row_of(rows, i), x.data(), n_embd_);
        f(static_cast<size_t>(i), static_cast<int>(cell / n_cells_), cell % n_cells_, x);
    }
    return true;
}

void CacheTensor::calibrate(const ggml_tensor* node) {
    calibration_.set_rope(rope_of_rows(node, head_dim()));
    const bool all = each_row(node, [this](size_t i, int stream, int64_t cell, std::span<const float> x) {
        calibration_.observe(*store_, stream, cell, plan_.exact->position(i), x.data());
    });
    if (all && calibration_.update(*store_)) stats().means_measured++; // write_rows() will say what is wrong otherwise
}

} // namespace tightkv
