// The buffer that holds a compressed KV cache inside the host: which of its tensors are caches, and how bytes get in and out.
//
// Addresses: the buffer reserves address space for the tensors' full f16 size and commits none of it, so every size assertion of the
// host holds; compressed rows live in TileStores beside it. A cache view is (root tensor, byte offset in declared f16 bytes).
// Tensors that are no compressed caches (other types, transposed V, unsupported head_dim, snapshots) live at their address as plain bytes.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "cache/kept_rows.h"
#include "cache/profile.h"
#include "cache/self_calibration.h"
#include "cache/tile_store.h"
#include "ggml-backend.h"
#include "ggml.h"

namespace tightkv {

inline const ggml_tensor* root_of(const ggml_tensor* t) { return t->view_src ? t->view_src : t; }
// Entry i of the index tensor of SET_ROWS, I64 or I32.
inline int64_t row_index(const ggml_tensor* cells, int64_t i) {
    const char* at = static_cast<const char*>(cells->data) + static_cast<size_t>(i) * cells->nb[0];
    return cells->type == GGML_TYPE_I64 ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
}

// Row i of the f32 operand of SET_ROWS.
inline const float* row_of(const ggml_tensor* rows, int64_t i) {
    return reinterpret_cast<const float*>(static_cast<const char*>(rows->data) + static_cast<size_t>(i) * rows->nb[1]);
}

inline size_t offset_of(const ggml_tensor* t) { return t->view_src ? t->view_offs : 0; }

enum class CacheMode : uint8_t {
    kUndecided, // head_dim not seen yet, nothing written
    kTiles,     // compressed
    kPlain,     // f16 at the tensor's address, served by the host's own kernels
};

class ExactCache;
class SelfProfile;

// What the specification says of one tensor.
struct TensorPlan {
    Format      format;
    float       sparse_v    = 0;       // of V: cache_spec.h
    int         exact_slots = 0;       // rows of the table of exact rows, per stream
    int         mean_tokens = 0;       // of K: CacheSpec::mean
    bool        sinks       = false;   // exact rows of first positions are kept
    ExactCache* exact       = nullptr; // of the buffer; null when nothing is wanted that must know the tokens of a batch

    SelfProfile* self_profile = nullptr; // of the buffer; null: not wanted, or nothing of this layer is compressed
};

// One cache_k_l* / cache_v_l* tensor: [n_streams][n_cells][n_embd], declared f16.
class CacheTensor {
public:
    CacheTensor(const ggml_tensor* t, Operand op, const TensorPlan& plan);
    ~CacheTensor();

    CacheMode     mode() const { return mode_; }
    Operand       operand() const { return operand_; }
    TileStore*    store() { return store_.get(); }
    TileStore*    exact() const { return exact_.get(); } // the table of exact rows, one cell per slot; null: none are kept
    ExactCache*   exact_cache() const { return plan_.exact; }
    int           block() const { return block_; } // of the model
    const void*   address() const { return address_; }
    int           head_dim() const { return store_ ? store_->shape().head_dim : 0; }
    int64_t       n_embd() const { return n_embd_; }
    int64_t       n_cells() const { return n_cells_; }
    int64_t       n_streams() const { return n_streams_; }
    const Format& format() const { return plan_.format; }
    float         sparse_v() const { return plan_.sparse_v; }
    // What the cache will take, before head_dim is known with the likeliest one.
    size_t packed_bytes() const;

    // head_dim was seen in a graph. Unsupported ones make the tensor plain, with one line that says so.
    void learn_head_dim(int64_t head_dim);
    void make_plain(const std::string& why);
    // Settles an undecided tensor that is touched before any graph was seen.
    void decide();

    // Declared f16 bytes [offset, offset + size) of the root tensor.
    void read(size_t offset, void* dst, size_t size);
    void write(size_t offset, const void* src, size_t size);
    // The same for a restored state: rows at its ends may become exact ones.
    void restore(size_t offset, const void* src, size_t size);
    void clear();

    // The keys' mean is still to be measured: rows of a SET_ROWS node, before they are written. One thread.
    bool calibrates() const { return operand_ == Operand::K && plan_.mean_tokens > 0 && plan_.format.transformed(); }
    bool calibrating() const { return !calibration_.done(); }
    void calibrate(const ggml_tensor* node);

    // profile=auto, until it is there: rows are kept as they came.
    SelfProfile* collector() const;
    void         keep_row(int stream, int64_t cell, const float* x) { // all KV heads
        if (takes_self_profile()) kept_.keep(stream, cell, x, static_cast<size_t>(n_embd_));
    }
    void drop_kept_rows() { kept_.clear(); }
    bool takes_self_profile() const { return plan_.self_profile && plan_.format.transformed(); }
    // One per KV head; their means take the place of one that was measured, or is being measured.
    void use_self_profile(std::vector<std::shared_ptr<const Transform>> transforms);
    // Means of values are for caches with sink rows: the first token's value is small, and minus the mean it is not.
    bool takes_means() const { return operand_ == Operand::K || plan_.sinks; }

    // Before head_dim is known: transforms of this layer of a profile, made when it is.
    void set_profile(std::shared_ptr<const Profile> profile, const LayerProfile* layer);
    bool profiled() const { return layer_ != nullptr; }
    // The profile was another model's: rows that are there already (a restored state) are coded again without it, in this format.
    void drop_profile(const Format& f);

    struct Cell {
        int     stream, head;
        int64_t cell;
    };
    Cell    cell_of(int64_t head_row) const;           // head_row = offset / (2 * head_dim)
    int64_t first_cell(const ggml_tensor* view) const; // of all streams together, as the indices of SET_ROWS count from
    // Beside exact rows the codes are those of the f16 row: they are the same again when it comes back from a saved state. [n] values.
    void as_kept(const float* x, float* kept, int64_t n) const;
    // The rows of a SET_ROWS node as_kept(), all KV heads: f(number of the row, stream, cell of the stream, row). False: a row lies outside
    // the cache, and f saw only those before it.
    bool    each_row(const ggml_tensor* node, const std::function<void(size_t, int, int64_t, std::span<const float>)>& f) const;
    void    write_rows(std::span<const StoreRow> rows);          // at most kEncodeRows; counts refused rows
    void    write_copy(const Cell& c, const uint8_t* canonical); // codes of another row of this tensor
    int64_t rows() const { return n_streams_ * n_cells_ * (n_embd_ / head_dim()); }

private:
    void   drop_stores();
    int    exact_slot(const Cell& c) const; // -1: only codes
    void   read_halves(const Cell& c, uint16_t* half) const;
    void   written(const Cell& c); // a row that nobody kept
    Status make_store(const StoreShape& shape, std::unique_ptr<TileStore>& out) const;

    int64_t                    n_embd_, n_cells_, n_streams_;
    void*                      address_;
    std::string                name_;
    int                        block_;
    Operand                    operand_;
    TensorPlan                 plan_;
    CacheMode                  mode_ = CacheMode::kUndecided;
    std::unique_ptr<TileStore> store_, exact_;
    SelfCalibration            calibration_;
    KeptRows                   kept_; // for the profile; the calibration has its own
    std::mutex                 lock_; // mode changes

    std::shared_ptr<const Profile> profile_;
    const LayerProfile*            layer_ = nullptr; // of profile_; null: none, or not this cache's
};

// Is t (by name and type) a cache that we could compress?
bool is_cache_tensor(const ggml_tensor* t, Operand* op = nullptr);
// Any cache_* tensor by name, of whatever type.
bool has_cache_name(const ggml_tensor* t);

// The buffer type of our buffers, made by the hooks for the host's API version; null until then.
ggml_backend_buffer_type_t kv_buffer_type();
void                       set_kv_buffer_type(ggml_backend_buffer_type_t buft);

inline bool in_kv_buffer(const ggml_tensor* t) {
    const ggml_tensor* r = root_of(t);
    return r->buffer && kv_buffer_type() && ggml_backend_buffer_get_type(r->buffer) == kv_buffer_type();
}
// The cache a tensor or view belongs to, or null.
CacheTensor* cache_of(const ggml_tensor* t);
// The same, but only where the rows are compressed.
inline CacheTensor* tiles_of(const ggml_tensor* t) {
    CacheTensor* c = t ? cache_of(t) : nullptr;
    return c && c->mode() == CacheMode::kTiles ? c : nullptr;
}

// A buffer of `size` bytes of address space for `n_tensors` tensors; null when there is none to be had. Those in `caches` become compressed
// caches under `spec`, in layer order, as soon as the host places them (init_tensor). Without caches: plain memory of our buffer type.
ggml_backend_buffer_t allocate_kv_buffer(size_t size, size_t n_tensors, const std::vector<const ggml_tensor*>& caches,
                                         const CacheSpec& spec);

// Packed size of all tensors of a planned cache, for the host's memory estimates.
size_t planned_bytes(const std::vector<const ggml_tensor*>& caches, const CacheSpec& spec);

// The compressed tensors of the buffer of a tensor of ours.
std::vector<CacheTensor*> tensors_of_buffer(const ggml_tensor* t);

// Holds the profiles of the buffers that this graph touches against the model's norms, until all of those were seen.
void check_profiles(ggml_cgraph* graph);

// One line about the caches of this buffer, the first time a graph runs on it.
void announce(const ggml_tensor* cache_view);

} // namespace tightkv
