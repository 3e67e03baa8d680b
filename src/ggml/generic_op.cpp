// Any op on a compressed cache that has no native kernel: its cache operands are decoded into f16 shadows, the host's own op runs
// on those, and what it changed is encoded again.
#include <algorithm>
#include <cstring>
#include <memory>

#include "ggml/cache_ops.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

// The f16 image of the part of a cache that an op touches.
struct Shadow {
    CacheTensor*      cache;
    size_t            begin = 0, end = 0; // declared bytes of the root
    std::vector<char> bytes, before;
};

size_t span_of(const ggml_tensor* t) { // bytes from the first to the last element
    size_t n = ggml_type_size(t->type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) n += static_cast<size_t>(t->ne[i] - 1) * t->nb[i];
    return n;
}

// A call, not an address: the library must load into a host that lacks the function, if only to refuse it.
struct FreeContext {
    void operator()(ggml_context* c) const { ggml_free(c); }
};

struct Shadows {
    std::vector<std::unique_ptr<Shadow>> all;

    Shadow& of(CacheTensor* c) {
        for (auto& s : all)
            if (s->cache == c) return *s;
        all.push_back(std::make_unique<Shadow>(Shadow{c, SIZE_MAX, 0, {}, {}}));
        return *all.back();
    }
    void cover(const ggml_tensor* t) {
        if (CacheTensor* c = tiles_of(t)) {
            Shadow& s = of(c);
            s.begin   = std::min(s.begin, offset_of(t));
            s.end     = std::max(s.end, offset_of(t) + span_of(t));
        }
    }
};

} // namespace

bool run_generic(ggml_backend_t backend, const ggml_tensor* node, std::string& why) {
    Shadows shadows;
    shadows.cover(node);
    for (const ggml_tensor* s : node->src)
        if (s) shadows.cover(s);
    for (auto& s : shadows.all) {
        s->bytes.resize(s->end - s->begin);
        s->cache->read(s->begin, s->bytes.data(), s->bytes.size());
    }
    Shadow* written = tiles_of(node) ? &shadows.of(tiles_of(node)) : nullptr;
    if (written) written->before = written->bytes;

    constexpr size_t                                 kNodes = 8;
    const std::unique_ptr<ggml_context, FreeContext> ctx(
        ggml_init({ggml_tensor_overhead() * (GGML_MAX_SRC + 2) + ggml_graph_overhead_custom(kNodes, false), nullptr, true}));
    if (!ctx) return why = "no memory", false;
    const auto copy = [&](const ggml_tensor* t) {
        ggml_tensor* n = ggml_new_tensor(ctx.get(), t->type, GGML_MAX_DIMS, t->ne);
        std::memcpy(n->nb, t->nb, sizeof n->nb);
        CacheTensor* c = tiles_of(t);
        n->data        = c ? shadows.of(c).bytes.data() + (offset_of(t) - shadows.of(c).begin) : t->data;
        return n;
    };
    ggml_tensor* n = copy(node);
    n->op          = node->op;
    n->flags       = node->flags;
    std::memcpy(n->op_params, node->op_params, sizeof n->op_params);
    for (int i = 0; i < GGML_MAX_SRC; i++)
        if (node->src[i]) n->src[i] = node->src[i] == node ? n : copy(node->src[i]);
    ggml_cgraph* graph = ggml_new_graph_custom(ctx.get(), kNodes, false);
    ggml_graph_add_node(graph, n);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS)
        return why = std::string("the host's ") + ggml_op_name(node->op) + " failed", false;

    if (written) { // encode only head rows whose bytes changed
        const size_t row = static_cast<size_t>(written->cache->head_dim()) * 2;
        for (size_t at = written->begin / row * row; at < written->end; at += row) {
            const size_t from = std::max(at, written->begin), to = std::min(at + row, written->end);
            if (std::memcmp(written->bytes.data() + (from - written->begin), written->before.data() + (from - written->begin), to - from) !=
                0)
                written->cache->write(from, written->bytes.data() + (from - written->begin), to - from);
        }
    }
    return true;
}

} // namespace tightkv
