// Laying out, sharing and merging the work of one attention operation.
#include "cache/read_path.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/softmax_state.h"

namespace tightkv {

namespace {

template <class T> T* offset(T* p, size_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}

// ALiBi slope of head h, as ggml defines it (Press et al. 2022, extended to head counts that are no power of two).
float alibi_slope(float max_bias, int n_heads, int h) {
    if (max_bias <= 0) return 1.0f;
    const int   n  = 1 << static_cast<int>(std::floor(std::log2(static_cast<double>(n_heads))));
    const float m0 = std::pow(2.0f, -max_bias / static_cast<float>(n)), m1 = std::pow(2.0f, -max_bias / 2 / static_cast<float>(n));
    return h < n ? std::pow(m0, static_cast<float>(h + 1)) : std::pow(m1, static_cast<float>(2 * (h - n) + 1));
}

// From here on the rows of one token fill the vectors of the many-rows kernel; below, a second pass over the packed codes is cheaper.
constexpr int64_t kManyRows = 16;

// A run shorter than this costs more in start-up and merging than another thread saves.
constexpr int kMinRunTokens = 512;

// One scratch per thread for the life of the thread: kernels' work space, then queries and states of a block.
float* thread_scratch(size_t floats) {
    struct Buffer {
        float* p = nullptr;
        size_t n = 0;
        ~Buffer() { ::operator delete[](p, std::align_val_t{64}); }
    };
    static thread_local Buffer buffer;
    if (buffer.n < floats) {
        ::operator delete[](buffer.p, std::align_val_t{64});
        buffer.p = nullptr, buffer.n = 0;
        buffer.p = static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t{64}));
        buffer.n = floats;
    }
    return buffer.p;
}

} // namespace

// Which part of the work a unit number means.
struct AttentionJob::Unit {
    int     stream, kv_head, token0, n_tokens;
    int64_t block;
    Unit(const AttentionJob& j, int64_t b) : block(b) {
        const int per_head = (j.args_.n_tokens + j.tokens_per_block_ - 1) / j.tokens_per_block_;
        token0             = static_cast<int>(b % per_head) * j.tokens_per_block_;
        n_tokens           = std::min(j.tokens_per_block_, j.args_.n_tokens - token0);
        kv_head            = static_cast<int>(b / per_head % j.args_.n_kv_heads);
        stream             = static_cast<int>(b / per_head / j.args_.n_kv_heads);
    }
};

Status AttentionJob::prepare(const AttentionArgs& a, int n_threads) {
    if (!a.k || !a.v || !a.q || !a.out) return invalid_argument("attention needs K, V, queries and an output");
    if (a.n_streams < 1 || a.n_kv_heads < 1 || a.n_heads < 1 || a.n_tokens < 1 || a.n_heads % a.n_kv_heads != 0)
        return invalid_argument("attention needs positive counts and a head count that is a multiple of the KV head count");
    const auto fits = [&](const TileStore& s, int stream0, int head0, int64_t cell0) {
        return stream0 >= 0 && int64_t{stream0} + a.n_streams <= s.shape().n_streams && head0 >= 0 &&
               int64_t{head0} + a.n_kv_heads <= s.shape().n_kv_heads && cell0 >= 0 && cell0 % kTileTokens == 0 && a.n_kv >= 0 &&
               cell0 <= s.shape().n_cells && a.n_kv <= s.shape().n_cells - cell0;
    };
    if (!fits(*a.k, a.k_stream0, a.k_head0, a.k_cell0) || !fits(*a.v, a.v_stream0, a.v_head0, a.v_cell0))
        return invalid_argument("attention reaches outside the cache");
    if (!(a.scale >= 0.0f && a.scale < __builtin_inff())) return invalid_argument("the scale of attention must be finite and not negative");
    args_  = a;
    group_ = a.n_heads / a.n_kv_heads;

    // Few rows: packed codes serve all of them at once. Many: blocks of rows share expanded tiles.
    const int64_t rows     = static_cast<int64_t>(a.n_tokens) * group_;
    decode_                = rows <= kMaxDecodeRows || (a.n_tokens == 1 && rows < kManyRows);
    tokens_per_block_      = decode_ ? a.n_tokens : std::max(1, kMaxBatchedRows / group_);
    const int64_t per_head = (a.n_tokens + tokens_per_block_ - 1) / tokens_per_block_;
    n_blocks_              = per_head * a.n_kv_heads * a.n_streams;

    // Split along the keys only while that is needed to give every thread two units.
    n_threads            = std::max(1, n_threads);
    const int64_t wanted = (2 * n_threads + n_blocks_ - 1) / n_blocks_;
    const int64_t most   = std::max<int64_t>(1, a.n_kv / kMinRunTokens);
    const int64_t runs   = n_threads == 1 ? 1 : std::clamp<int64_t>(wanted, 1, most);
    const int64_t tiles  = (a.n_kv + kTileTokens - 1) / kTileTokens;
    run_tokens_          = static_cast<int>(std::max<int64_t>(1, (tiles + runs - 1) / runs)) * kTileTokens;
    n_runs_              = std::max<int64_t>(1, (a.n_kv + run_tokens_ - 1) / run_tokens_);
    if (n_runs_ > 1) {
        const size_t row_floats = 2 + static_cast<size_t>(a.v->shape().head_dim);
        partial_.resize(static_cast<size_t>(n_blocks_ * n_runs_) * tokens_per_block_ * group_ * row_floats);
        done_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(n_blocks_)); // value-initialised: zero
    }
    next_.store(0, std::memory_order_relaxed);
    v_seen_.store(0, std::memory_order_relaxed), v_skipped_.store(0, std::memory_order_relaxed);
    return {};
}

void AttentionJob::run() {
    float* const scratch = thread_scratch(work_floats(args_.k->shape().head_dim, args_.v->shape().head_dim, tokens_per_block_ * group_));
    for (int64_t unit; (unit = next_.fetch_add(1, std::memory_order_relaxed)) < n_blocks_ * n_runs_;) attend_unit(unit, scratch);
}

void AttentionJob::attend_unit(int64_t unit, float* scratch) {
    const AttentionArgs& a  = args_;
    const int            dk = a.k->shape().head_dim, dv = a.v->shape().head_dim;
    const Unit           u(*this, unit / n_runs_);
    const int            run = static_cast<int>(unit % n_runs_), rows = u.n_tokens * group_;

    float* const q = scratch + attend_scratch(dk, dv); // [rows][dk], row = token * group + head in group
    float* const m = q + static_cast<size_t>(rows) * dk;
    float* const l = m + rows;
    float* const o = l + rows;
    std::fill(m, m + rows, kNegInf);
    std::fill(l, l + static_cast<size_t>(rows) * (1 + dv), 0.0f); // l and o

    const KernelTable& kernel = kernels();
    for (int r = 0; r < rows; r++) {
        const int    token = u.token0 + r / group_, head = u.kv_head * group_ + r % group_;
        float* const row = q + static_cast<size_t>(r) * dk;
        std::memcpy(row, offset(a.q, u.stream * a.q_strides.stream + head * a.q_strides.head + token * a.q_strides.token),
                    sizeof(float) * static_cast<size_t>(dk));
        if (a.k->format().transformed()) kernel.forward(transform_for(dk), row);
    }

    AttendArgs args;
    args.k = a.k->tiles(a.k_stream0 + u.stream, a.k_head0 + u.kv_head);
    args.v = a.v->tiles(a.v_stream0 + u.stream, a.v_head0 + u.kv_head);
    args.k.tiles += static_cast<size_t>(a.k_cell0 / kTileTokens) * tile_bytes(args.k.format, dk);
    args.v.tiles += static_cast<size_t>(a.v_cell0 / kTileTokens) * tile_bytes(args.v.format, dv);
    args.begin    = run * run_tokens_;
    args.end      = static_cast<int>(std::min<int64_t>(a.n_kv, static_cast<int64_t>(args.begin) + run_tokens_));
    args.scale    = a.scale;
    args.softcap  = a.softcap;
    args.sparse_v = a.sparse_v;
    TileCounts counts;
    args.v_tiles   = &counts;
    args.mask_type = a.mask ? a.mask_type : MaskType::kNone;

    const int   at_once = decode_ ? kMaxDecodeRows : kMaxBatchedRows;
    const void* mask[kMaxBatchedRows];
    float       slope[kMaxBatchedRows];
    for (int r0 = 0; r0 < rows; r0 += at_once) {
        args.rows = std::min(at_once, rows - r0);
        for (int r = 0; r < args.rows; r++) {
            const int token = u.token0 + (r0 + r) / group_, head = u.kv_head * group_ + (r0 + r) % group_;
            slope[r] = alibi_slope(a.max_bias, a.n_heads, head);
            mask[r]  = static_cast<const char*>(a.mask) + u.stream * a.mask_strides.stream + head * a.mask_strides.head +
                      token * a.mask_strides.token;
        }
        args.q     = q + static_cast<size_t>(r0) * dk;
        args.mask  = args.mask_type == MaskType::kNone ? nullptr : mask;
        args.slope = a.max_bias > 0 ? slope : nullptr;
        const AttendState state{m + r0, l + r0, o + static_cast<size_t>(r0) * dv};
        (decode_ ? kernel.attend_decode : kernel.attend_batched)(args, state, scratch);
    }

    v_seen_.fetch_add(counts.seen, std::memory_order_relaxed), v_skipped_.fetch_add(counts.skipped, std::memory_order_relaxed);

    if (n_runs_ == 1) {
        for (int r = 0; r < rows; r++)
            write_row(u.stream, u.kv_head * group_ + r % group_, u.token0 + r / group_, m[r], l[r], o + static_cast<size_t>(r) * dv);
        return;
    }
    float* part = partial_.data() + static_cast<size_t>(unit) * tokens_per_block_ * group_ * (2 + dv);
    for (int r = 0; r < rows; r++, part += 2 + dv) {
        part[0] = m[r], part[1] = l[r];
        std::memcpy(part + 2, o + static_cast<size_t>(r) * dv, sizeof(float) * static_cast<size_t>(dv));
    }
    // The thread that finishes a block's last run merges all of them; acq_rel makes the others' parts visible to it.
    if (done_[static_cast<size_t>(u.block)].fetch_add(1, std::memory_order_acq_rel) + 1 == n_runs_) finish_block(u.block, scratch);
}

void AttentionJob::finish_block(int64_t block, float* scratch) {
    const int    dv = args_.v->shape().head_dim;
    const Unit   u(*this, block);
    const size_t row_floats = 2 + static_cast<size_t>(dv);
    const size_t run_floats = static_cast<size_t>(tokens_per_block_) * group_ * row_floats;
    float* const base       = partial_.data() + static_cast<size_t>(block * n_runs_) * run_floats;
    for (int r = 0; r < u.n_tokens * group_; r++) {
        SoftmaxState sum{kNegInf, 0.0f, scratch};
        std::fill(scratch, scratch + dv, 0.0f);
        for (int64_t run = 0; run < n_runs_; run++) { // always in this order
            float* part = base + static_cast<size_t>(run) * run_floats + static_cast<size_t>(r) * row_floats;
            sum.merge({part[0], part[1], part + 2}, static_cast<size_t>(dv));
        }
        write_row(u.stream, u.kv_head * group_ + r % group_, u.token0 + r / group_, sum.m, sum.l, sum.o);
    }
}

void AttentionJob::write_row(int stream, int head, int token, float m, float l, float* o) {
    const int    dv = args_.v->shape().head_dim;
    SoftmaxState s{m, l, o};
    if (args_.sinks) s.add_sink(args_.sinks[head], static_cast<size_t>(dv));
    s.normalize(static_cast<size_t>(dv));
    if (args_.v->format().transformed()) kernels().inverse(transform_for(dv), o);
    std::memcpy(offset(args_.out, stream * args_.out_strides.stream + head * args_.out_strides.head + token * args_.out_strides.token), o,
                sizeof(float) * static_cast<size_t>(dv));
}

} // namespace tightkv
