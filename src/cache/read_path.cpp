// Laying out, sharing and merging the work of one attention operation.
#include "cache/read_path.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/softmax_state.h"
#include "cache/mask_bits.h"

namespace tightkv {

namespace {

template <class T> T* offset_bytes(T* p, size_t bytes) {
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

Status check(const AttentionArgs& a) {
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
    if (a.exact.n_rows > 0) {
        const auto holds = [&](const TileStore* e, const TileStore& s) {
            return e && !e->format().transformed() && e->shape().head_dim == s.shape().head_dim &&
                   e->shape().n_kv_heads == s.shape().n_kv_heads && a.exact.n_rows <= e->shape().n_cells && a.exact.stream0 >= 0 &&
                   int64_t{a.exact.stream0} + a.n_streams <= e->shape().n_streams;
        };
        if (!holds(a.exact.k, *a.k) || !holds(a.exact.v, *a.v) || !a.exact.mask)
            return invalid_argument("exact rows need f16 stores of the cache's shape and a mask");
    }
    return {};
}

Status AttentionJob::prepare(const AttentionArgs& a, int n_threads) {
    if (Status s = check(a); !s.ok()) return s;
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
    gathers_             = !decode_ && a.exact.n_rows > 0 && a.exact.mask_type == MaskType::kBits;
    as_bits_             = !decode_ && a.mask && a.mask_type != MaskType::kBits && a.mask_strides.head == 0;
    if (parts() > 1) {
        const size_t row_floats = 2 + static_cast<size_t>(a.v->shape().head_dim);
        partial_.resize(static_cast<size_t>(n_blocks_ * parts()) * tokens_per_block_ * group_ * row_floats);
        done_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(n_blocks_)); // value-initialised: zero
    }
    next_.store(0, std::memory_order_relaxed);
    for (std::atomic<int64_t>* n : {&v_seen_, &v_skipped_, &v_twice_}) n->store(0, std::memory_order_relaxed);
    return {};
}

// What a thread works with on one block, carved out of its scratch; rows = tokens of a block * group.
struct AttentionJob::Work {
    float *     kernel, *q, *q_mean; // attend_scratch(); [rows][dk], [rows]: prepare_queries()
    AttendState codes, exact;
    uint64_t*   bits; // [tile of a run][token of the block]
    // Exact rows that neighbouring tokens see, side by side.
    uint64_t* seen;      // [words of the table]: which ones
    uint64_t* seen_bits; // [tile][token of the block]
    uint8_t * seen_k, *seen_v;
    size_t    floats; // of all

    Work(const AttentionJob& j, float* scratch) {
        const AttentionArgs& a  = j.args_;
        const size_t         dk = static_cast<size_t>(a.k->shape().head_dim), dv = static_cast<size_t>(a.v->shape().head_dim);
        const size_t         tokens = static_cast<size_t>(j.tokens_per_block_), rows = tokens * static_cast<size_t>(j.group_);
        const size_t         tiles = j.gathers_ ? static_cast<size_t>((a.exact.n_rows + kTileTokens - 1) / kTileTokens) : 0;
        floats                     = 0;
        const auto take            = [&](size_t n) {
            float* const at = scratch ? scratch + floats : nullptr;
            floats += (n + 15) / 16 * 16;
            return at;
        };
        const auto take_words = [&](size_t n) { return reinterpret_cast<uint64_t*>(take(2 * n)); };
        const auto take_state = [&](size_t n) { return AttendState{take(n), take(n), take(n * dv)}; };
        kernel                = take(attend_scratch(static_cast<int>(dk), static_cast<int>(dv)));
        q = take(rows * dk), q_mean = take(rows);
        codes = take_state(rows), exact = take_state(a.exact.n_rows > 0 ? rows : 0);
        bits = take_words(j.as_bits_ ? static_cast<size_t>(j.run_tokens_ / kTileTokens) * tokens : 0);
        seen = take_words(tiles), seen_bits = take_words(tiles * tokens);
        seen_k = reinterpret_cast<uint8_t*>(take(tiles * kTileTokens * dk / 2));
        seen_v = reinterpret_cast<uint8_t*>(take(tiles * kTileTokens * dv / 2));
    }
};

void AttentionJob::run() {
    const Work work(*this, thread_scratch(Work(*this, nullptr).floats));
    for (int64_t unit; (unit = next_.fetch_add(1, std::memory_order_relaxed)) < units();) attend_unit(unit, work);
}

const float* AttentionJob::query(const Unit& u, int head, int token) const {
    const RowStrides& by = args_.q_strides;
    return offset_bytes(args_.q, u.stream * by.stream + head * by.head + token * by.token);
}

// What the keys' mean adds to every score of a query, q: [dk] as it came.
float AttentionJob::mean_score(const Unit& u, const float* q) const {
    const int    dk   = args_.k->shape().head_dim;
    const float* mean = args_.k->format().transformed() ? args_.k->transform(args_.k_head0 + u.kv_head).mean() : nullptr;
    if (!mean) return 0;
    float lane[8] = {}, sum = 0;
    for (int i = 0; i < dk; i++) lane[i % 8] += q[i] * mean[i];
    for (float x : lane) sum += args_.scale * x;
    return sum;
}

// Queries in the domain of what they meet: of the codes' transform, or as they are. q: [rows][dk], row = token * group + head in group.
// offset: [rows], scale * <q, mean of the keys>, which scores of codes lack and scores of exact rows contain; zero without a mean.
void AttentionJob::prepare_queries(const Unit& u, bool exact, float* q, float* offset) const {
    const AttentionArgs& a       = args_;
    const int            dk      = a.k->shape().head_dim;
    const Transform&     t       = a.k->transform(a.k_head0 + u.kv_head);
    const bool           rotated = a.k->format().transformed();
    for (int r = 0; r < u.n_tokens * group_; r++) {
        const int    token = u.token0 + r / group_, head = u.kv_head * group_ + r % group_;
        float* const row = q + static_cast<size_t>(r) * dk;
        std::memcpy(row, query(u, head, token), sizeof(float) * static_cast<size_t>(dk));
        offset[r] = mean_score(u, row);
        if (rotated && !exact) kernels().query(t, row);
    }
}

void AttentionJob::attend_unit(int64_t unit, const Work& w) {
    const int    dv = args_.v->shape().head_dim;
    const Unit   u(*this, unit / parts());
    const int    part = static_cast<int>(unit % parts()), rows = u.n_tokens * group_;
    const size_t o_floats = static_cast<size_t>(dv);

    if (parts() == 1) { // exact rows too
        attend_codes(u, 0, w);
        if (args_.exact.n_rows > 0) attend_exact(u, w);
        const auto state = [&](const AttendState& of, int r) {
            return SoftmaxState{of.m[r], of.l[r], of.o + static_cast<size_t>(r) * o_floats};
        };
        for (int r = 0; r < rows; r++) {
            SoftmaxState exact; // empty
            if (args_.exact.n_rows > 0) exact = state(w.exact, r);
            write_row(u, r, state(w.codes, r), args_.exact.n_rows > 0 ? &exact : nullptr);
        }
        return;
    }
    const bool         exact = part == n_runs_;
    const AttendState& s     = exact ? w.exact : w.codes;
    exact ? attend_exact(u, w) : attend_codes(u, part, w);
    float* at = partial_.data() + static_cast<size_t>(unit) * tokens_per_block_ * group_ * (2 + o_floats);
    for (int r = 0; r < rows; r++, at += 2 + dv) {
        at[0] = s.m[r], at[1] = s.l[r];
        std::memcpy(at + 2, s.o + static_cast<size_t>(r) * o_floats, sizeof(float) * o_floats);
    }
    // The thread that finishes a block's last part merges all of them; acq_rel makes the others' parts visible to it.
    if (done_[static_cast<size_t>(u.block)].fetch_add(1, std::memory_order_acq_rel) + 1 == parts()) finish_block(u.block, w.kernel);
}

// The run `part` of the codes.
void AttentionJob::attend_codes(const Unit& u, int part, const Work& w) {
    const AttentionArgs& a     = args_;
    const int64_t        begin = static_cast<int64_t>(part) * run_tokens_;
    AttendArgs           args;
    args.k = a.k->tiles(a.k_stream0 + u.stream, a.k_head0 + u.kv_head);
    args.v = a.v->tiles(a.v_stream0 + u.stream, a.v_head0 + u.kv_head);
    args.k.tiles += static_cast<size_t>((a.k_cell0 + begin) / kTileTokens) * tile_bytes(args.k.format, args.k.head_dim);
    args.v.tiles += static_cast<size_t>((a.v_cell0 + begin) / kTileTokens) * tile_bytes(args.v.format, args.v.head_dim);
    args.end       = static_cast<int>(std::min<int64_t>(a.n_kv - begin, run_tokens_));
    args.mask_type = a.mask ? a.mask_type : MaskType::kNone;
    args.mask_step = a.mask_step;
    RowMask mask{nullptr, a.mask_strides.token, a.mask_strides.head};
    if (a.mask) {
        const size_t value = a.mask_type == MaskType::kF16 ? sizeof(uint16_t) : sizeof(float);
        mask.first =
            static_cast<const char*>(a.mask) + u.stream * a.mask_strides.stream + u.token0 * mask.token + u.kv_head * group_ * mask.head;
        mask.first += a.mask_type == MaskType::kBits ? begin / kTileTokens * a.mask_step * static_cast<ptrdiff_t>(sizeof(uint64_t))
                                                     : begin * static_cast<ptrdiff_t>(value);
    }
    if (as_bits_ && make_bits(u, mask, args.end, w.bits)) {
        mask           = {reinterpret_cast<const char*>(w.bits), sizeof(uint64_t), 0};
        args.mask_type = MaskType::kBits, args.mask_step = u.n_tokens;
    }
    prepare_queries(u, false, w.q, w.q_mean);
    attend(u, 0, u.n_tokens, args, mask, w, w.codes, a.softcap != 0 ? w.q_mean : nullptr);
}

// mask: of values, one row for all heads. Every row of it is read once and along its length here, where the kernel goes from row to row
// for each tile. False: it has other values than 0 and -inf.
bool AttentionJob::make_bits(const Unit& u, const RowMask& mask, int n_keys, uint64_t* bits) const {
    const size_t tile = kTileTokens * (args_.mask_type == MaskType::kF16 ? sizeof(uint16_t) : sizeof(float));
    for (int t = 0; t < u.n_tokens; t++) {
        const char* row = mask.first + static_cast<size_t>(t) * mask.token;
        uint64_t*   at  = bits + t;
        for (int j = 0; j < n_keys; j += kTileTokens, row += tile, at += u.n_tokens)
            if (!mask_word_of(args_.mask_type, row, std::min(kTileTokens, n_keys - j), *at)) return false;
    }
    return true;
}

void AttentionJob::attend_exact(const Unit& u, const Work& w) {
    const AttentionArgs& a = args_;
    AttendArgs           args;
    args.k         = a.exact.k->tiles(a.exact.stream0 + u.stream, a.k_head0 + u.kv_head);
    args.v         = a.exact.v->tiles(a.exact.stream0 + u.stream, a.v_head0 + u.kv_head);
    args.end       = static_cast<int>(a.exact.n_rows);
    args.mask_type = a.exact.mask_type;
    args.mask_step = a.exact.mask_step;
    const RowMask mask{static_cast<const char*>(a.exact.mask) + u.stream * a.exact.mask_strides.stream +
                           u.token0 * a.exact.mask_strides.token,
                       a.exact.mask_strides.token, 0};
    prepare_queries(u, true, w.q, w.q_mean);
    if (gathers_)
        for (int t = 0; t < u.n_tokens;) t += attend_gathered(u, t, args, mask, w);
    else attend(u, 0, u.n_tokens, args, mask, w, w.exact, nullptr);
    // A soft cap sees the mean's part of a score. Otherwise the softmax of codes alone does not, and exact rows leave it out as well.
    if (a.softcap == 0)
        for (int r = 0; r < u.n_tokens * group_; r++) w.exact.m[r] -= w.q_mean[r];
}

// A token sees few rows of the table of a batch, and the next one nearly the same. Those that the tokens from t0 on see are put side by
// side, for as many tokens as find them in equally many tiles. Returns how many tokens that is.
int AttentionJob::attend_gathered(const Unit& u, int t0, AttendArgs args, const RowMask& mask, const Work& w) {
    constexpr int kLeastTokens = 8; // fewer do not pay for expanding the tiles
    const auto    tiles        = [](int n) { return (n + kTileTokens - 1) / kTileTokens; };
    const int     words        = tiles(args.end);
    const auto    word         = [&](int t, int i) {
        return *reinterpret_cast<const uint64_t*>(mask.first + static_cast<size_t>(t) * mask.token + i * args.mask_step * sizeof(uint64_t));
    };
    std::fill_n(w.seen, words, 0);
    int n_rows = 0, t1 = t0;
    for (; t1 < u.n_tokens; t1++) {
        int more = 0;
        for (int i = 0; i < words; i++)
            if (const uint64_t fresh = word(t1, i) & ~w.seen[i]) more += std::popcount(fresh);
        if (t1 - t0 >= kLeastTokens && tiles(n_rows + more) > tiles(n_rows)) break;
        n_rows += more;
        for (int i = 0; i < words; i++) w.seen[i] |= word(t1, i);
    }
    const int    n     = t1 - t0;
    const size_t row_k = static_cast<size_t>(args.k.head_dim) * sizeof(uint16_t),
                 row_v = static_cast<size_t>(args.v.head_dim) * sizeof(uint16_t);
    size_t at          = 0;
    std::fill_n(w.seen_bits, tiles(n_rows) * n, 0);
    for (int i = 0; i < words; i++)
        for (uint64_t rest = w.seen[i]; rest != 0; rest &= rest - 1, at++) {
            const int    bit  = std::countr_zero(rest);
            const size_t from = static_cast<size_t>(i) * kTileTokens + static_cast<size_t>(bit);
            std::memcpy(w.seen_k + at * row_k, args.k.tiles + from * row_k, row_k);
            std::memcpy(w.seen_v + at * row_v, args.v.tiles + from * row_v, row_v);
            uint64_t* const to = w.seen_bits + at / kTileTokens * static_cast<size_t>(n);
            for (int t = 0; t < n; t++) to[t] |= (word(t0 + t, i) >> bit & 1) << at % kTileTokens;
        }
    const size_t all = static_cast<size_t>(tiles(n_rows)) * kTileTokens; // kernels read whole tiles
    std::memset(w.seen_k + at * row_k, 0, (all - at) * row_k), std::memset(w.seen_v + at * row_v, 0, (all - at) * row_v);
    args.k.tiles = w.seen_k, args.v.tiles = w.seen_v, args.end = n_rows, args.mask_step = n;
    attend(u, t0, n, args, {reinterpret_cast<const char*>(w.seen_bits), sizeof(uint64_t), 0}, w, w.exact, nullptr);
    return n;
}

// The rows of n tokens of a block, from its token t0 on, over what args says. mask: from token t0 and the block's first head on.
void AttentionJob::attend(const Unit& u, int t0, int n, AttendArgs args, const RowMask& mask, const Work& w, const AttendState& state,
                          const float* offset) {
    const AttentionArgs& a  = args_;
    const int            dk = args.k.head_dim, dv = args.v.head_dim, r_end = (t0 + n) * group_;
    std::fill(state.m + t0 * group_, state.m + r_end, kNegInf);
    std::fill(state.l + t0 * group_, state.l + r_end, 0.0f);
    std::fill(state.o + static_cast<size_t>(t0 * group_) * dv, state.o + static_cast<size_t>(r_end) * dv, 0.0f);
    TileCounts counts;
    args.scale = a.scale, args.softcap = a.softcap, args.sparse_v = a.sparse_v, args.v_tiles = &counts;
    const int   at_once = decode_ ? kMaxDecodeRows : kMaxBatchedRows;
    const void* rows[kMaxBatchedRows];
    float       slope[kMaxBatchedRows];
    for (int r0 = t0 * group_; r0 < r_end; r0 += at_once) {
        args.rows = std::min(at_once, r_end - r0);
        for (int r = 0; r < args.rows; r++) {
            const int token = (r0 + r) / group_, head = (r0 + r) % group_;
            slope[r] = alibi_slope(a.max_bias, a.n_heads, u.kv_head * group_ + head);
            rows[r]  = mask.first + static_cast<size_t>(token - t0) * mask.token + static_cast<size_t>(head) * mask.head;
        }
        args.q      = w.q + static_cast<size_t>(r0) * dk;
        args.mask   = args.mask_type == MaskType::kNone ? nullptr : rows;
        args.slope  = a.max_bias > 0 ? slope : nullptr;
        args.offset = offset ? offset + r0 : nullptr;
        const AttendState s{state.m + r0, state.l + r0, state.o + static_cast<size_t>(r0) * dv};
        (decode_ ? kernels().attend_decode : kernels().attend_batched)(args, s, w.kernel);
    }
    v_seen_.fetch_add(counts.seen, std::memory_order_relaxed), v_skipped_.fetch_add(counts.skipped, std::memory_order_relaxed);
    v_twice_.fetch_add(counts.twice, std::memory_order_relaxed);
}

void AttentionJob::finish_block(int64_t block, float* scratch) {
    const int    dv = args_.v->shape().head_dim;
    const Unit   u(*this, block);
    const size_t row_floats  = 2 + static_cast<size_t>(dv);
    const size_t part_floats = static_cast<size_t>(tokens_per_block_) * group_ * row_floats;
    float* const base        = partial_.data() + static_cast<size_t>(block * parts()) * part_floats;
    for (int r = 0; r < u.n_tokens * group_; r++) {
        const auto state = [&](int64_t part) {
            float* const at = base + static_cast<size_t>(part) * part_floats + static_cast<size_t>(r) * row_floats;
            return SoftmaxState{at[0], at[1], at + 2};
        };
        SoftmaxState sum{kNegInf, 0.0f, scratch};
        std::fill(scratch, scratch + dv, 0.0f);
        for (int64_t run = 0; run < n_runs_; run++) sum.merge(state(run), static_cast<size_t>(dv)); // always in this order
        const SoftmaxState exact = state(parts() - 1);
        write_row(u, r, sum, args_.exact.n_rows > 0 ? &exact : nullptr);
    }
}

// codes.o is in the domain of the packed values; exact rows are values as they are.
void AttentionJob::write_row(const Unit& u, int row, SoftmaxState codes, const SoftmaxState* exact) {
    const int    token = u.token0 + row / group_, head = u.kv_head * group_ + row % group_;
    const size_t dv = static_cast<size_t>(args_.v->shape().head_dim);
    if (args_.v->format().transformed()) {
        const Transform& t = args_.v->transform(args_.v_head0 + u.kv_head);
        kernels().output(t, codes.o);
        if (const float* mean = t.mean())
            for (size_t i = 0; i < dv; i++) codes.o[i] += codes.l * mean[i];
    }
    if (exact) codes.merge(*exact, dv);
    // The scores of codes lack the mean's part unless a soft cap put it in: the sink's logit does without it, too.
    if (args_.sinks) codes.add_sink(args_.sinks[head] - (args_.softcap == 0 ? mean_score(u, query(u, head, token)) : 0.0f), dv);
    codes.normalize(dv);
    std::memcpy(
        offset_bytes(args_.out, u.stream * args_.out_strides.stream + head * args_.out_strides.head + token * args_.out_strides.token),
        codes.o, sizeof(float) * dv);
}

} // namespace tightkv
