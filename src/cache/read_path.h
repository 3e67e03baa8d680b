// The read path: attention of a batch of queries over compressed K and V, shared out among the caller's threads.
//
// One job = one attention operation. prepare() on one thread, then run(thread) on each of n_threads threads (no barrier needed in
// between), then the output is complete when all have returned. Work unit = (stream, KV head, block of query rows, run of tokens); the last
// thread to finish a block's runs merges them, in a fixed order, so results do not depend on timing.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/softmax_state.h"
#include "base/status.h"
#include "cache/tile_store.h"

namespace tightkv {

// Strides in bytes. Query row t of head h in stream s: q + s*stream + h*head + t*token, [head_dim] f32 contiguous; the output alike.
struct RowStrides {
    size_t token = 0, head = 0, stream = 0;
};

// Rows of some cells in f16, attended to beside the codes (exact_rows.h). AttentionArgs::mask hides those cells from the codes.
struct ExactOperands {
    const TileStore *k = nullptr, *v = nullptr; // f16, one cell per exact row; the heads of the caches
    int              stream0   = 0;             // query stream s reads stream0 + s
    int64_t          n_rows    = 0;
    MaskType         mask_type = MaskType::kF16; // or kBits
    const void*      mask      = nullptr;        // value of exact row e for token t of stream s, or word: as AttentionArgs::mask
    RowStrides       mask_strides;
    ptrdiff_t        mask_step = 1;
};

struct AttentionArgs {
    const TileStore* k         = nullptr; // [stream0 + s], heads k_head0 ...
    const TileStore* v         = nullptr;
    int              k_stream0 = 0, v_stream0 = 0; // store stream of query stream 0; query stream s reads stream0 + s
    int              k_head0 = 0, v_head0 = 0;
    int              n_streams = 1, n_kv_heads = 1, n_heads = 1, n_tokens = 1;
    int64_t          k_cell0 = 0, v_cell0 = 0; // first key of the operation, a multiple of kTileTokens
    int64_t          n_kv = 0;

    const float* q = nullptr;
    RowStrides   q_strides;
    float*       out = nullptr;
    RowStrides   out_strides;

    float         scale = 1.0f, softcap = 0.0f, max_bias = 0.0f; // max_bias > 0: ALiBi slopes as ggml defines them
    MaskType      mask_type = MaskType::kNone;
    const void*   mask      = nullptr; // value of key j for token t of head h in stream s: mask + s*stream + h*head + t*token + j
    RowStrides    mask_strides;        // 0 where the mask is shared
    ptrdiff_t     mask_step = 1;       // of bits: the word of tile i is i * mask_step words on
    const float*  sinks     = nullptr; // [n_heads] logits, or null
    ExactOperands exact;               // n_rows = 0: none
    float         sparse_v = 0.0f;     // kernel_table.h
};

// Whether shapes, streams and cells fit the stores.
Status check(const AttentionArgs& a);

class AttentionJob {
public:
    // Checks arguments and lays out the work. args must stay valid until the last run() returns.
    Status prepare(const AttentionArgs& args, int n_threads);
    void   run(); // call once per thread
    // Parts the work is cut into, at least one: more threads than this have nothing to do.
    int64_t units() const { return n_blocks_ * parts(); }
    // Bytes of work space a thread keeps for blocks of `rows` query rows (kept for the life of the thread): the kernel's, then queries and
    // states of a block. Batches add 8 bytes per token of a block and 64 keys, and exact rows a second state and the rows of a block.
    static size_t work_bytes(int head_dim_k, int head_dim_v, int rows = kMaxBatchedRows) {
        const auto dk = static_cast<size_t>(head_dim_k), dv = static_cast<size_t>(head_dim_v);
        return (attend_scratch(head_dim_k, head_dim_v) + static_cast<size_t>(rows) * (dk + dv + 3)) * sizeof(float);
    }
    // Tiles of V (times blocks of query rows) seen, skipped and taken twice; complete when all run() have returned.
    TileCounts v_tiles() const { return {v_seen_.load(), v_skipped_.load(), v_twice_.load()}; }

private:
    struct Unit;
    struct Work;
    struct RowMask { // of the first row of some; bytes from token to token and from head to head
        const char* first;
        size_t      token, head;
    };
    const float* query(const Unit& u, int head, int token) const; // [dk]
    float        mean_score(const Unit& u, const float* q) const;
    void         prepare_queries(const Unit& u, bool exact, float* q, float* offset) const;
    void         attend_unit(int64_t unit, const Work& w);
    void         attend_codes(const Unit& u, int part, const Work& w);
    bool         make_bits(const Unit& u, const RowMask& mask, int n_keys, uint64_t* bits) const;
    void         attend_exact(const Unit& u, const Work& w);
    int          attend_gathered(const Unit& u, int t0, AttendArgs args, const RowMask& mask, const Work& w);
    void         attend(const Unit& u, int t0, int n, AttendArgs args, const RowMask& mask, const Work& w, const AttendState& state,
                        const float* offset);
    void         finish_block(int64_t block, float* scratch);
    void         write_row(const Unit& u, int row, SoftmaxState codes, const SoftmaxState* exact);
    // Of a block: runs of codes, then the exact rows; one run takes them along.
    int64_t parts() const { return n_runs_ == 1 ? 1 : n_runs_ + (args_.exact.n_rows > 0); }

    AttentionArgs                       args_;
    int                                 group_            = 1;      // query heads per KV head
    int                                 tokens_per_block_ = 1;      // query tokens of one block; rows = tokens * group
    int64_t                             n_blocks_ = 0, n_runs_ = 1; // runs of tokens per block
    int                                 run_tokens_ = 0;
    bool                                decode_     = true;
    bool                                gathers_    = false; // attend_gathered()
    bool                                as_bits_    = false; // make_bits()
    std::vector<float>                  partial_;            // [block][part][rows][m, l, o[dv]]
    std::unique_ptr<std::atomic<int>[]> done_;               // [block]
    std::atomic<int64_t>                next_{0}, v_seen_{0}, v_skipped_{0}, v_twice_{0};
};

} // namespace tightkv
