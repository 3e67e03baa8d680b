#include "engine_llama_rows.h"

#include <cstdio>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "engine_llama_private.h"
#include "errors.h"

namespace tightkv::tool {

namespace {

// The tensor that holds the memory.
const ggml_tensor* root_of(const ggml_tensor* t) { return t->view_src ? t->view_src : t; }

// "cache_k_l7", "cache_v_l7": what llama.cpp calls its caches.
bool is_cache(const ggml_tensor* t, Operand& operand, int& layer) {
    char letter = 0;
    if (std::sscanf(t->name, "cache_%c_l%d", &letter, &layer) != 2 || (letter != 'k' && letter != 'v')) return false;
    operand = letter == 'k' ? Operand::key : Operand::value;
    return true;
}

// Where the tensor's memory can be read and written by us.
char* memory_of(const ggml_tensor* t) {
    const ggml_backend_buffer_t buffer = root_of(t)->buffer;
    if (!buffer || !ggml_backend_buffer_is_host(buffer))
        throw failure(fmt::format("rows of {} cannot be watched: they are not in the memory of the CPU", root_of(t)->name));
    return static_cast<char*>(t->data);
}

void require_type(const ggml_tensor* t, ggml_type type) {
    if (t->type != type)
        throw failure(
            fmt::format("rows of {} cannot be watched: they are {}; accepted: {}", t->name, ggml_type_name(t->type), ggml_type_name(type)));
}

} // namespace

// The host asks about every node in order, then computes the nodes up to and with the first wanted one, then shows that one.
bool RowTap::evaluate(ggml_tensor* node, bool ask, void* tap) {
    auto* t = static_cast<RowTap*>(tap);
    if (t->thrown_) return ask; // stop at once
    try {
        if (ask) return t->wanted(node);
        Operand operand = Operand::key;
        int     layer   = 0;
        if (node->op == GGML_OP_SET_ROWS && is_cache(root_of(node), operand, layer)) t->written(node, root_of(node), operand, layer);
        if (node->op == GGML_OP_FLASH_ATTN_EXT && is_cache(root_of(node->src[1]), operand, layer)) t->asked(node, layer);
        return true;
    } catch (...) { // not through the host's C code
        t->thrown_ = std::current_exception();
        return false;
    }
}

void RowTap::rethrow() {
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
}

// A ROPE node that is asked about has not been computed yet, so its positions are still in memory; later they need not be.
bool RowTap::wanted(const ggml_tensor* node) {
    Operand operand = Operand::key;
    int     layer   = 0;
    switch (node->op) {
    case GGML_OP_ROPE: {
        const ggml_tensor* p = node->src[1];
        positions_.resize(static_cast<size_t>(node->ne[2])); // where there are several a token (M-RoPE), the first are those of time
        ggml_backend_tensor_get(p, positions_.data(), 0, positions_.size() * sizeof(int));
        rope_ = rope_of(node); // of queries, then of keys: the same
        return false;
    }
    case GGML_OP_SET_ROWS: return is_cache(root_of(node), operand, layer);
    case GGML_OP_FLASH_ATTN_EXT: return is_cache(root_of(node->src[1]), operand, layer);
    default: return false;
    }
}

void RowTap::written(const ggml_tensor* node, const ggml_tensor* root, Operand operand, int layer) {
    const ggml_tensor *from = node->src[0], *indices = node->src[1];
    require_type(from, GGML_TYPE_F32);
    require_type(indices, GGML_TYPE_I64);
    require_type(root, GGML_TYPE_F16);
    const int64_t n = from->ne[0], tokens = from->ne[1];
    if (root->ne[0] != n)
        throw failure(
            fmt::format("rows of {} cannot be watched: {} values a token are written into rows of {}", root->name, n, root->ne[0]));
    // llama.cpp writes a view of [head_dim, kv_head, token] that has the first two merged.
    const ggml_tensor* heads    = from->op == GGML_OP_VIEW ? from->src[0] : nullptr;
    const bool         shown    = heads && heads->ne[2] == tokens && heads->ne[0] * heads->ne[1] == n;
    const int          head_dim = shown ? static_cast<int>(heads->ne[0]) : head_dim_[operand == Operand::value];

    rows_.resize(static_cast<size_t>(n * tokens));
    for (int64_t t = 0; t < tokens; t++)
        std::memcpy(&rows_[static_cast<size_t>(t * n)], memory_of(from) + static_cast<size_t>(t) * from->nb[1],
                    static_cast<size_t>(n) * sizeof(float));
    cells_.resize(static_cast<size_t>(tokens));
    std::memcpy(cells_.data(), memory_of(indices), cells_.size() * sizeof(int64_t));

    WrittenRows w;
    w.layer            = layer;
    w.operand          = operand;
    w.head_dim         = head_dim;
    w.n_kv_heads       = static_cast<int>(n) / head_dim;
    w.n_tokens         = static_cast<int>(tokens);
    w.n_streams        = static_cast<int>(root->ne[2]);
    w.cells_per_stream = root->ne[1];
    w.rows             = rows_;
    w.cells            = cells_;
    if (positions_.size() == cells_.size()) w.positions = positions_;
    w.cache = reinterpret_cast<uint16_t*>(memory_of(root));
    observer_.keys_values(w);
}

void RowTap::asked(const ggml_tensor* node, int layer) {
    const ggml_tensor *q = node->src[0], *k = node->src[1]; // [head_dim, token of the stream, head, stream], any strides
    require_type(q, GGML_TYPE_F32);
    const auto d     = static_cast<size_t>(q->ne[0]);
    const auto heads = static_cast<size_t>(q->ne[2]), tokens = static_cast<size_t>(q->ne[1]), streams = static_cast<size_t>(q->ne[3]);
    rows_.resize(d * heads * tokens * streams);
    const char* data = memory_of(q);
    for (size_t s = 0; s < streams; s++)
        for (size_t t = 0; t < tokens; t++)
            for (size_t h = 0; h < heads; h++)
                std::memcpy(&rows_[((s * tokens + t) * heads + h) * d], data + t * q->nb[1] + h * q->nb[2] + s * q->nb[3],
                            d * sizeof(float));
    QueryRows r;
    r.layer      = layer;
    r.head_dim   = static_cast<int>(d);
    r.n_heads    = static_cast<int>(heads);
    r.n_kv_heads = static_cast<int>(k->ne[2]);
    r.n_tokens   = static_cast<int>(tokens * streams);
    r.rows       = rows_;
    if (positions_.size() == tokens * streams) r.positions = positions_;
    r.rope = rope_;
    if (rope_ && 2 * rope_->frequencies.size() > d) r.rope.reset(); // of something wider than these rows
    rope_ = Rope{};
    float params[3];
    std::memcpy(params, node->op_params, sizeof params);
    r.scale = params[0], r.max_bias = params[1], r.softcap = params[2];
    if (const ggml_tensor* const mask = node->src[3]; mask && streams == 1) {
        require_type(mask, GGML_TYPE_F16);
        r.mask_stride = mask->nb[1] / sizeof(uint16_t);
        r.mask        = {reinterpret_cast<const uint16_t*>(memory_of(mask)), r.mask_stride * tokens};
    }
    if (const ggml_tensor* const sinks = node->src[4]) {
        require_type(sinks, GGML_TYPE_F32);
        r.sinks = {reinterpret_cast<const float*>(memory_of(sinks)), heads};
    }
    observer_.queries(r);
}

} // namespace tightkv::tool
