// FLASH_ATTN_EXT: the queries of a batch over the compressed cache.
#include <cstring>

#include "ggml/cache_ops.h"
#include "ggml/exact_cache.h"
#include "ggml/self_profile.h"

namespace tightkv {

namespace {

// Where a [head_dim, n_kv, n_heads, n_streams] view lies in its cache.
struct Window {
    int     stream0, head0;
    int64_t cell0;
};

bool window_of(const ggml_tensor* view, CacheTensor& c, Window& w) {
    const size_t head_bytes = static_cast<size_t>(c.head_dim()) * 2, cell_bytes = static_cast<size_t>(c.n_embd()) * 2;
    const size_t stream_bytes = cell_bytes * static_cast<size_t>(c.n_cells());
    const size_t at           = offset_of(view);
    if (view->ne[0] != c.head_dim() || view->nb[0] != 2 || view->nb[1] != cell_bytes) return false;
    if (view->ne[2] > 1 && view->nb[2] != head_bytes) return false;
    if (view->ne[3] > 1 && view->nb[3] != stream_bytes) return false;
    if (at % head_bytes != 0) return false;
    w.stream0 = static_cast<int>(at / stream_bytes);
    w.cell0   = static_cast<int64_t>(at % stream_bytes / cell_bytes);
    w.head0   = static_cast<int>(at % cell_bytes / head_bytes);
    return w.cell0 % kTileTokens == 0 && w.cell0 + view->ne[1] <= c.n_cells() && w.head0 + view->ne[2] <= c.n_embd() / c.head_dim() &&
           w.stream0 + view->ne[3] <= c.n_streams();
}

} // namespace

bool can_attend(const ggml_tensor* node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
    CacheTensor *      ck = tiles_of(k), *cv = tiles_of(v);
    Window             wk, wv;
    if (!ck || !cv || ck->operand() != Operand::K || cv->operand() != Operand::V || !window_of(k, *ck, wk) || !window_of(v, *cv, wv))
        return false;
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || node->type != GGML_TYPE_F32 || q->ne[0] != k->ne[0]) return false;
    if (k->ne[1] != v->ne[1] || k->ne[2] != v->ne[2] || k->ne[3] != v->ne[3] || q->ne[3] != k->ne[3] || q->ne[2] % k->ne[2] != 0)
        return false;
    if (mask && ((mask->type != GGML_TYPE_F16 && mask->type != GGML_TYPE_F32) || mask->ne[0] < k->ne[1] || mask->ne[1] < q->ne[1]))
        return false;
    if (mask && (q->ne[2] % mask->ne[2] != 0 || q->ne[3] % mask->ne[3] != 0 || (mask->ne[2] > 1 && mask->ne[2] != q->ne[2]) ||
                 (mask->ne[3] > 1 && mask->ne[3] != q->ne[3])))
        return false;
    if (ck->exact() && cv->exact() && mask && mask->ne[2] > 1) return false; // one mask for all heads, as every model has it
    float scale = 0;
    std::memcpy(&scale, node->op_params, sizeof scale);
    if (!(scale >= 0.0f)) return false; // no model has one; the host would know what it means
    return !sinks || sinks->type == GGML_TYPE_F32;
}

Status prepare_attention(const ggml_tensor* node, const int32_t* params, int n_threads, AttentionJob& job) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
    CacheTensor *      ck = cache_of(k), *cv = cache_of(v);
    Window             wk, wv;
    if (!window_of(k, *ck, wk) || !window_of(v, *cv, wv)) return {StatusCode::kInternal, "the cache view changed"};

    if (SelfProfile* p = ck->collector(); p && wk.head0 == 0 && k->ne[2] * ck->head_dim() == ck->n_embd()) p->add_queries(*ck, q);
    AttentionArgs a;
    std::memcpy(&a.scale, params + 0, 4);
    std::memcpy(&a.max_bias, params + 1, 4);
    std::memcpy(&a.softcap, params + 2, 4);
    a.k = ck->store(), a.v = cv->store();
    a.k_stream0 = wk.stream0, a.v_stream0 = wv.stream0;
    a.k_head0 = wk.head0, a.v_head0 = wv.head0;
    a.k_cell0 = wk.cell0, a.v_cell0 = wv.cell0;
    a.n_kv        = k->ne[1];
    a.n_tokens    = static_cast<int>(q->ne[1]);
    a.n_heads     = static_cast<int>(q->ne[2]);
    a.n_kv_heads  = static_cast<int>(k->ne[2]);
    a.n_streams   = static_cast<int>(q->ne[3]);
    a.q           = static_cast<const float*>(q->data);
    a.q_strides   = {q->nb[1], q->nb[2], q->nb[3]};
    a.out         = static_cast<float*>(node->data); // [dv, n_heads, n_tokens, n_streams]
    a.out_strides = {node->nb[2], node->nb[1], node->nb[3]};
    if (mask) {
        a.mask         = mask->data;
        a.mask_type    = mask->type == GGML_TYPE_F16 ? MaskType::kF16 : MaskType::kF32;
        a.mask_strides = {mask->nb[1], mask->ne[2] > 1 ? mask->nb[2] : 0, mask->ne[3] > 1 ? mask->nb[3] : 0};
    }
    a.sparse_v = cv->sparse_v();
    if (sinks) a.sinks = static_cast<const float*>(sinks->data);
    if (ck->exact() && cv->exact() && ck->exact_cache() == cv->exact_cache() && a.k_stream0 == a.v_stream0)
        ck->exact_cache()->attach(a, *ck, *cv);
    return job.prepare(a, n_threads);
}

} // namespace tightkv
