// The products and the softmax are ggml's, with the model's own scale, mask, ALiBi slopes, cap and sinks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "attention_weights.h"
#include "engine_llama_private.h"
#include "errors.h"
#include "ggml-alloc.h"
#include "ggml-cpp.h"

namespace tightkv::tool {

namespace {

constexpr size_t kNodes = 32; // more than the graph below has

// [token][head][d] as ggml's [d, token, head].
ggml_tensor* heads_last(ggml_context* c, ggml_tensor* t) { return ggml_permute(c, t, 0, 2, 1, 3); }

ggml_tensor* input(ggml_context* c, ggml_type type, int64_t a, int64_t b, int64_t n = 1) {
    ggml_tensor* const t = ggml_new_tensor_3d(c, type, a, b, n);
    ggml_set_input(t);
    return t;
}

// The mask of the tokens at hand, [token][token].
std::vector<uint16_t> mask_of(const QueryRows& q, std::span<const int64_t> cells) {
    const size_t          n = cells.size();
    std::vector<uint16_t> mask(n * n);
    if (q.mask.empty()) return mask;
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < n; i++) mask[t * n + i] = q.mask[t * q.mask_stride + static_cast<size_t>(cells[i])];
    return mask;
}

std::vector<float> squares(const float* rows, size_t n, size_t stride, size_t d) {
    std::vector<float> out(n, 0.0f);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++) out[i] += rows[i * stride + j] * rows[i * stride + j];
    return out;
}

} // namespace

struct AttentionWeigher::Ggml {
    explicit Ggml(int threads)
        : backend(cpu_backend(threads)), memory(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get()))) {}
    ggml_backend_ptr backend;
    ggml_gallocr_ptr memory;
};

AttentionWeigher::AttentionWeigher(int threads) : ggml_(std::make_unique<Ggml>(threads)) {}
AttentionWeigher::~AttentionWeigher() = default;

AttentionWeights AttentionWeigher::weigh(const QueryRows& q, std::span<const float> keys, std::span<const float> values,
                                         std::span<const int64_t> cells, int exact) {
    const auto    n = static_cast<size_t>(q.n_tokens), heads = static_cast<size_t>(q.n_heads), kv_heads = static_cast<size_t>(q.n_kv_heads);
    const size_t  dv     = values.size() / (n * kv_heads);
    const int64_t tokens = q.n_tokens;
    const size_t  row    = n * kv_heads;
    if (keys.size() != row * static_cast<size_t>(q.head_dim) || values.size() != row * dv || cells.size() != n ||
        (!q.mask.empty() && *std::max_element(cells.begin(), cells.end()) >= static_cast<int64_t>(q.mask_stride)))
        throw failure(fmt::format("block {}: keys, values and queries are not of the same {} tokens", q.layer, n));

    const ggml_context_ptr context(
        ggml_init({(kNodes + 8) * ggml_tensor_overhead() + ggml_graph_overhead_custom(kNodes, false), nullptr, true}));
    ggml_context* const c = context.get();
    if (!c) throw failure("no memory for attention's weights");
    ggml_tensor* const tq    = input(c, GGML_TYPE_F32, q.head_dim, q.n_heads, tokens);
    ggml_tensor* const tk    = input(c, GGML_TYPE_F32, q.head_dim, q.n_kv_heads, tokens);
    ggml_tensor* const tv    = input(c, GGML_TYPE_F32, static_cast<int64_t>(dv), q.n_kv_heads, tokens);
    ggml_tensor* const mask  = input(c, GGML_TYPE_F16, tokens, tokens);
    ggml_tensor* const sinks = q.sinks.empty() ? nullptr : input(c, GGML_TYPE_F32, q.n_heads, 1);
    ggml_tensor*       s     = ggml_mul_mat(c, heads_last(c, tk), heads_last(c, tq)); // [key, query, head]
    if (q.softcap != 0) s = ggml_scale(c, ggml_tanh(c, ggml_scale(c, s, q.scale / q.softcap)), q.softcap);
    ggml_tensor* const p = ggml_soft_max_ext(c, s, mask, q.softcap != 0 ? 1.0f : q.scale, q.max_bias);
    if (sinks) ggml_soft_max_add_sinks(p, sinks);
    ggml_tensor* const o  = ggml_mul_mat(c, ggml_cont(c, ggml_permute(c, tv, 1, 2, 0, 3)), p); // [d, query, head]
    ggml_tensor* const vo = ggml_mul_mat(c, heads_last(c, tv), o);                             // [key, query, head]
    for (ggml_tensor* const t : {p, o, vo}) ggml_set_output(t);
    ggml_cgraph* const graph = ggml_new_graph_custom(c, kNodes, false);
    ggml_build_forward_expand(graph, vo);
    if (!ggml_gallocr_alloc_graph(ggml_->memory.get(), graph)) throw failure("no memory for attention's weights");
    const std::vector<uint16_t> seen = mask_of(q, cells);
    ggml_backend_tensor_set(tq, q.rows.data(), 0, ggml_nbytes(tq));
    ggml_backend_tensor_set(tk, keys.data(), 0, ggml_nbytes(tk));
    ggml_backend_tensor_set(tv, values.data(), 0, ggml_nbytes(tv));
    ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));
    if (sinks) ggml_backend_tensor_set(sinks, q.sinks.data(), 0, ggml_nbytes(sinks));
    if (ggml_backend_graph_compute(ggml_->backend.get(), graph) != GGML_STATUS_SUCCESS) throw failure("ggml failed on attention's weights");

    AttentionWeights w{std::vector<float>(kv_heads * n), std::vector<float>(kv_heads * n), std::vector<float>(heads * n)};
    const auto       first = static_cast<size_t>(std::max(exact, 0));
    for (size_t h = 0; h < heads; h++) {
        const size_t             kv     = h / (heads / kv_heads);
        const std::vector<float> size_v = squares(values.data() + kv * dv, n, kv_heads * dv, dv);
        const std::vector<float> size_o = squares(static_cast<const float*>(o->data) + h * n * dv, n, dv, dv);
        float* const             of_k   = &w.keys[kv * n];
        float* const             of_v   = &w.values[kv * n];
        for (size_t t = first; t < n; t++) {
            const float* const weight = static_cast<const float*>(p->data) + (h * n + t) * n;
            const float* const both   = static_cast<const float*>(vo->data) + (h * n + t) * n;
            float              all    = 0;
            for (size_t i = first; i < n; i++) {
                const float x = weight[i] * weight[i] * std::max(size_v[i] - 2 * both[i] + size_o[t], 0.0f);
                all += x, of_k[i] += x, of_v[i] += weight[i];
            }
            w.queries[h * n + t] = all;
        }
    }
    return w;
}

} // namespace tightkv::tool
