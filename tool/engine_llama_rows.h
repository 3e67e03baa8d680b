// What a model writes into its KV cache and asks of it, while it runs: rows as they are written, queries as attention gets them (after
// RoPE). An observer may also change the cache: f16 rows of the stock f16 cache, those just written and older ones, before attention
// reads them. Attach one with ContextOptions::observer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "cache/rope.h"

struct ggml_tensor;

namespace tightkv::tool {

enum class Operand { key, value };

// One write of one layer, after it has happened. Valid during the call.
struct WrittenRows {
    int     layer    = 0;
    Operand operand  = Operand::key;
    int     head_dim = 0, n_kv_heads = 0;
    int     n_tokens = 0, n_streams = 1;
    int64_t cells_per_stream = 0;

    std::span<const float>   rows;            // [token][kv_head][head_dim], as the model computed them
    std::span<const int64_t> cells;           // [token] of all streams together: stream * cells_per_stream + cell of the stream
    std::span<const int>     positions;       // [token]; empty for models without RoPE
    uint16_t*                cache = nullptr; // [stream][cell][kv_head][head_dim], f16, all of the layer's cache

    std::span<uint16_t> cached(int64_t cell) const { // [kv_head][head_dim]
        const auto n = static_cast<size_t>(head_dim) * static_cast<size_t>(n_kv_heads);
        return {cache + static_cast<size_t>(cell) * n, n};
    }
};

// The queries of one layer, after attention has met them. Valid during the call.
struct QueryRows {
    int layer    = 0;
    int head_dim = 0, n_heads = 0, n_kv_heads = 0; // query head h reads KV head h / (n_heads / n_kv_heads)
    int n_tokens = 0;                              // of all streams

    std::span<const float> rows;      // [token][head][head_dim]; tokens in the order of the layer's WrittenRows
    std::span<const int>   positions; // [token]; empty for models without RoPE
    // How positions turn them and their keys: no frequencies in a layer without RoPE, none where it is of a kind that a Rope cannot say.
    std::optional<Rope> rope;

    // What attention does with scores, in the operator's terms (src/cpu/attention.h has the formulas).
    float                     scale = 1, max_bias = 0, softcap = 0;
    std::span<const uint16_t> mask; // f16, [token][mask_stride], a column per cell of the cache; empty: none
    size_t                    mask_stride = 0;
    std::span<const float>    sinks; // [head]; empty: none
};

// Called on the thread that calls Context::decode(); what it throws comes out there.
class RowObserver {
public:
    virtual ~RowObserver() = default;
    virtual void keys_values(const WrittenRows&) {}
    virtual void queries(const QueryRows&) {}
};

// Listens to the host's evaluation of graphs for one context.
class RowTap {
public:
    // head_dim of keys and values, for graphs that do not tell.
    RowTap(RowObserver& observer, int head_dim_k, int head_dim_v) : observer_(observer), head_dim_{head_dim_k, head_dim_v} {}
    RowTap(const RowTap&)            = delete;
    RowTap& operator=(const RowTap&) = delete;

    static bool evaluate(ggml_tensor* node, bool ask, void* tap); // ggml_backend_sched_eval_callback
    void        rethrow();                                        // what the observer threw, or nothing

private:
    bool wanted(const ggml_tensor* node);
    void written(const ggml_tensor* node, const ggml_tensor* root, Operand operand, int layer);
    void asked(const ggml_tensor* node, int layer);

    RowObserver&         observer_;
    int                  head_dim_[2];
    std::exception_ptr   thrown_;
    std::vector<float>   rows_;
    std::vector<int64_t> cells_;
    std::vector<int>     positions_;     // of the ubatch being computed
    std::optional<Rope>  rope_ = Rope{}; // of the layer being computed
};

// Of a ROPE node; none for kinds that turn a coordinate by something other than the position.
std::optional<Rope> rope_of(const ggml_tensor* node);

} // namespace tightkv::tool
