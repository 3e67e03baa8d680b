// graph_compute: nodes on compressed caches become custom ops for the duration of the call and run on the host's own threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "ggml/cache_ops.h"
#include "ggml/exact_cache.h"
#include "ggml/guard.h"
#include "ggml/hooks.h"
#include "ggml/key_rope.h"
#include "ggml/self_profile.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

enum class Way : uint8_t { kWrite, kAttend, kGeneric };

struct Job {
    ggml_tensor*      node = nullptr;
    ggml_op           op{};
    int32_t           params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    Way               way{};
    bool              shared_first_step = false; // of a write: prepare_rows() has something to do
    AttentionJob      attention;
    std::atomic<int>  stage{0}; // 0 fresh, 1 being prepared, 2 ready, 3 failed
    std::atomic<bool> failed{false};
    std::string       why;
};

// A CPU backend of our own for generic ops, one per computing thread, freed with it.
ggml_backend_t plain_backend() {
    struct Owner {
        ggml_backend_t b = nullptr;
        ~Owner() {
            if (b) ggml_backend_free(b);
        }
    };
    static thread_local Owner owner;
    if (!owner.b) owner.b = new_plain_backend();
    return owner.b;
}

void cpu_relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The first thread to arrive lays out the work (only now is the thread count known); the others wait, a few microseconds.
bool prepared(Job& job, int n_threads) {
    int fresh = 0;
    if (job.stage.compare_exchange_strong(fresh, 1, std::memory_order_acq_rel)) {
        const bool ok = guarded(false, [&] { // whatever happens, the others are waiting and must be told
            if (job.way == Way::kWrite) return prepare_rows(job.node), true;
            const Status s = prepare_attention(job.node, job.params, n_threads, job.attention);
            if (!s.ok()) job.why = s.message();
            return s.ok();
        });
        if (!ok) job.failed = true;
        job.stage.store(ok ? 2 : 3, std::memory_order_release);
        return ok;
    }
    int stage;
    while ((stage = job.stage.load(std::memory_order_acquire)) < 2) cpu_relax();
    return stage == 2;
}

void run_job(ggml_tensor*, int thread, int n_threads, void* user) {
    Job& job = *static_cast<Job*>(user);
    try {
        switch (job.way) {
        case Way::kWrite:
            if (!job.shared_first_step || prepared(job, n_threads)) write_rows(job.node, thread, n_threads);
            break;
        case Way::kAttend:
            if (prepared(job, n_threads)) job.attention.run();
            break;
        case Way::kGeneric:
            if (thread == 0) {
                ggml_tensor original = *job.node; // with its own op and parameters again
                original.op          = job.op;
                std::memcpy(original.op_params, job.params, sizeof original.op_params);
                const ggml_backend_t b = plain_backend();
                if (!b || !run_generic(b, &original, job.why)) job.failed = true;
            }
            break;
        }
    } catch (const std::exception& e) { // no exception may cross into the host
        if (!job.failed.exchange(true)) guarded([&] { job.why = e.what(); });
    }
}

// op_params of a custom op as the host lays them out, learnt through its public constructor; `at` is where our pointer goes.
struct CustomParams {
    int32_t params[GGML_MAX_OP_PARAMS / sizeof(int32_t)] = {};
    size_t  at                                           = 0;
    bool    ok                                           = false;

    CustomParams() {
        ggml_context* ctx = ggml_init({4096, nullptr, true});
        if (!ctx) return;
        void* const        mark = reinterpret_cast<void*>(uintptr_t{0x7469676874'6b76});
        const ggml_tensor* t    = ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run_job, GGML_N_TASKS_MAX, mark);
        std::memcpy(params, t->op_params, sizeof params);
        const char* const bytes = reinterpret_cast<const char*>(params);
        while (at + sizeof mark <= sizeof params && std::memcmp(bytes + at, &mark, sizeof mark) != 0) at += sizeof(int32_t);
        ok = at + sizeof mark <= sizeof params;
        ggml_free(ctx);
    }
};

const CustomParams& custom_params() {
    static const CustomParams p;
    return p;
}

bool is_view_op(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

bool touches_tiles(const ggml_tensor* t) {
    if (tiles_of(t)) return true;
    for (const ggml_tensor* s : t->src)
        if (s && tiles_of(s)) return true;
    return false;
}

bool touches_plain(const ggml_tensor* t) {
    const auto plain = [](const ggml_tensor* x) {
        const CacheTensor* c = x ? cache_of(x) : nullptr;
        return c && c->mode() == CacheMode::kPlain;
    };
    return plain(t) || std::any_of(std::begin(t->src), std::end(t->src), plain);
}

Way way_of(const ggml_tensor* t) {
    if (t->op == GGML_OP_SET_ROWS && can_write_rows(t)) return Way::kWrite;
    if (t->op == GGML_OP_FLASH_ATTN_EXT && can_attend(t)) return Way::kAttend;
    return Way::kGeneric;
}

} // namespace

void observe(const ggml_tensor* op) {
    if (op->op == GGML_OP_FLASH_ATTN_EXT) {
        for (int i = 1; i <= 2; i++)
            if (CacheTensor* c = op->src[i] ? cache_of(op->src[i]) : nullptr)
                if (!(i == 2 && c->operand() == Operand::K))
                    c->learn_head_dim(op->src[i]->ne[0]); // V as a view of K (MLA) says nothing of K
    } else if (op->op == GGML_OP_MUL_MAT && op->src[0]) {
        CacheTensor* c = cache_of(op->src[0]);
        if (c && c->operand() == Operand::K && c->mode() == CacheMode::kUndecided) c->learn_head_dim(op->src[0]->ne[0]);
    } else if (op->op == GGML_OP_SET_ROWS) {
        CacheTensor* c = cache_of(op);
        if (c && op->ne[0] != c->n_embd()) c->make_plain("V is stored transposed (flash attention is off): V stays f16, K is compressed");
    }
}

bool custom_ops_work() { return custom_params().ok; }

namespace {

// The nodes on compressed caches as custom ops, for the life of this object; then the host's graph is as it was.
class Rewritten {
public:
    Rewritten() = default;
    void apply(ggml_cgraph* graph) {
        const int n = ggml_graph_n_nodes(graph);
        for (int i = 0; i < n; i++) observe(ggml_graph_node(graph, i));
        check_profiles(graph);
        begin_batches(graph);
        for (int i = 0; i < n; i++) {
            ggml_tensor* t = ggml_graph_node(graph, i);
            if (is_view_op(t->op) || ggml_is_empty(t)) continue;
            if (touches_tiles(t)) rewrite(t);
            else if (touches_plain(t)) stats().fallback_ops++;
        }
    }
    ~Rewritten() {
        for (size_t i = 0; i < n_jobs_; i++) {
            const Job& job = *pool()[i];
            job.node->op   = job.op;
            std::memcpy(job.node->op_params, job.params, sizeof job.params);
        }
    }
    Rewritten(const Rewritten&) = delete;

    void count_tiles() const { // the graph has run
        for (size_t i = 0; i < n_jobs_; i++) {
            if (pool()[i]->way != Way::kAttend || pool()[i]->stage != 2) continue;
            const TileCounts c = pool()[i]->attention.v_tiles();
            stats().v_tiles += c.seen, stats().v_tiles_skipped += c.skipped, stats().v_tiles_twice += c.twice;
        }
    }

    void make_profiles() const { // the graph has run, to its end
        for (const Collector& c : collectors_) c.profile->graph_done(c.tensors);
    }

    // The first job that failed, or null.
    const Job* failed() const {
        for (size_t i = 0; i < n_jobs_; i++)
            if (pool()[i]->failed) return pool()[i].get();
        return nullptr;
    }

private:
    static std::vector<std::unique_ptr<Job>>& pool() { // jobs keep their buffers from graph to graph
        static thread_local std::vector<std::unique_ptr<Job>> jobs;
        return jobs;
    }
    // Caches that keep exact rows, or still measure the keys' mean or their profile, must know which tokens are coming.
    void begin_batches(ggml_cgraph* graph) {
        struct Batch {
            ExactCache*               cache;
            std::vector<ggml_tensor*> writes;
            const ggml_tensor*        positions = nullptr;
        };
        std::vector<Batch> batches;
        const ggml_tensor* positions = nullptr; // a cache's own come first; not every cache, nor every layer, need turn its keys
        for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
            ggml_tensor* const t = ggml_graph_node(graph, i);
            if (t->op != GGML_OP_SET_ROWS) continue;
            const CacheTensor* const c   = cache_of(t);
            const ggml_tensor* const own = c && c->operand() == Operand::K ? positions_of_keys(t) : nullptr;
            if (!positions) positions = own;
            if (!can_write_rows(t) || !tiles_of(t)->exact_cache()) continue;
            ExactCache* const cache = tiles_of(t)->exact_cache();
            auto              at    = std::find_if(batches.begin(), batches.end(), [cache](const Batch& b) { return b.cache == cache; });
            if (at == batches.end()) at = batches.insert(at, Batch{cache, {}});
            at->writes.push_back(t);
            if (!at->positions) at->positions = own;
        }
        for (const Batch& b : batches) {
            const std::vector<CacheTensor*> tensors  = tensors_of_buffer(b.writes.front());
            const bool                      fresh    = b.cache->begin_graph(b.writes, tensors, b.positions ? b.positions : positions);
            const auto                      collects = std::find_if(tensors.begin(), tensors.end(), [](auto* c) { return c->collector(); });
            if (collects == tensors.end()) continue;
            if (fresh) (*collects)->collector()->begin_batch(tensors);
            if (SelfProfile* const p = (*collects)->collector()) collectors_.push_back({p, tensors});
        }
    }
    void rewrite(ggml_tensor* t) {
        if (n_jobs_ == 0)
            announce(tiles_of(t) ? t : *std::find_if(std::begin(t->src), std::end(t->src), [](const ggml_tensor* s) {
                return s && tiles_of(s);
            }));
        if (n_jobs_ == pool().size()) pool().push_back(std::make_unique<Job>());
        Job& job = *pool()[n_jobs_];
        job.node = t, job.op = t->op, job.way = way_of(t);
        std::memcpy(job.params, t->op_params, sizeof job.params);
        job.stage = 0, job.failed = false;
        job.shared_first_step = job.way == Way::kWrite && needs_preparation(*tiles_of(t));
        (job.way == Way::kWrite ? stats().native_writes : job.way == Way::kAttend ? stats().native_attention : stats().generic_ops)++;
        if (job.way == Way::kGeneric)
            say_once(std::string("operation ") + ggml_op_name(t->op) + " on a compressed cache runs by way of f16 (correct, slower)");
        Job* const user = &job;
        t->op           = GGML_OP_CUSTOM;
        std::memcpy(t->op_params, custom_params().params, sizeof t->op_params);
        std::memcpy(reinterpret_cast<char*>(t->op_params) + custom_params().at, &user, sizeof user);
        n_jobs_++; // from here on the node is ours to restore
    }

    struct Collector {
        SelfProfile*              profile;
        std::vector<CacheTensor*> tensors;
    };
    size_t                 n_jobs_ = 0;
    std::vector<Collector> collectors_; // of the buffers that still measure their profile
};

} // namespace

ggml_status hooked_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    if (!kv_buffer_type()) return host_graph_compute(backend, graph);
    return guarded(GGML_STATUS_FAILED, [&] {
        Rewritten rewritten; // restores what it rewrote, also when apply() fails half-way
        rewritten.apply(graph);
        const ggml_status status = host_graph_compute(backend, graph);
        stats().graphs++;
        rewritten.count_tiles();
        const Job* job = rewritten.failed();
        if (!job && status == GGML_STATUS_SUCCESS) rewritten.make_profiles();
        if (!job) return status;
        say(std::string(ggml_op_name(job->op)) + " failed: " + job->why);
        return GGML_STATUS_FAILED;
    });
}

} // namespace tightkv
