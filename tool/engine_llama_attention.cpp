#include "engine_llama_attention.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "bench/huge_buffer.h"
#include "engine_llama_private.h"
#include "errors.h"

namespace tightkv::tool {

namespace {

// The functions used; handles are opaque, so a fork's structs may differ from the headers.
#define TIGHTKV_GGML_FUNCTIONS(F)                                                                                                          \
    F(init)                                                                                                                                \
    F(free)                                                                                                                                \
    F(new_tensor_2d)                                                                                                                       \
    F(new_tensor_3d)                                                                                                                       \
    F(permute)                                                                                                                             \
    F(flash_attn_ext)                                                                                                                      \
    F(new_graph_custom)                                                                                                                    \
    F(build_forward_expand)                                                                                                                \
    F(backend_graph_compute) F(backend_free) F(backend_cpu_buffer_from_ptr) F(backend_tensor_alloc) F(backend_buffer_free)
struct Ggml {
#define F(name) decltype(&ggml_##name) name = nullptr;
    TIGHTKV_GGML_FUNCTIONS(F)
#undef F
    ggml_backend_t backend = nullptr;
};

Ggml linked_ggml(int threads) {
    Ggml g;
#define F(name) g.name = ggml_##name;
    TIGHTKV_GGML_FUNCTIONS(F)
#undef F
    g.backend = cpu_backend(threads);
    return g;
}

Ggml loaded_ggml(const std::string& folder, int threads) {
    const std::string file   = folder + "/libggml.so";
    void* const       handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND); // its own functions before ours
    if (!handle) throw failure(fmt::format("cannot load {}: {}", file, dlerror()));
    const auto find = [&](auto& f, const char* name) {
        f = reinterpret_cast<std::remove_reference_t<decltype(f)>>(dlsym(handle, name));
        if (!f) throw failure(fmt::format("{} has no function {}", file, name));
    };
    Ggml g;
#define F(name) find(g.name, "ggml_" #name);
    TIGHTKV_GGML_FUNCTIONS(F)
#undef F
    ggml_backend_t (*cpu_init)()             = nullptr;
    void (*set_threads)(ggml_backend_t, int) = nullptr;
    find(cpu_init, "ggml_backend_cpu_init"), find(set_threads, "ggml_backend_cpu_set_n_threads");
    g.backend = cpu_init();
    if (!g.backend) throw failure(fmt::format("{} has no CPU backend", file));
    set_threads(g.backend, threads);
    return g;
}

class LlamaAttention : public bench::Contender {
public:
    LlamaAttention(Ggml g, const std::string& name_, ggml_type type, const bench::AttentionData& data, int64_t n_keys, double total)
        : g_(g), type_(type), shape_(data.shape), n_keys_(n_keys),
          operand_bytes_(padded(ggml_row_size(type, shape_.head_dim) * shape_.n_kv_heads * n_keys)) {
        name             = name_;
        const double row = static_cast<double>(ggml_row_size(type, shape_.head_dim));
        layer_bytes = bench::kv_bytes(shape_, row), layers = bench::layers_for(2.0 * static_cast<double>(operand_bytes_), total);
        const size_t q_bytes = padded(sizeof(float) * shape_.rows_floats()), mask_bytes = padded(2 * data.mask_rows * n_keys);
        memory_ = std::make_unique<bench::HugeBuffer>(2 * operand_bytes_ * static_cast<size_t>(layers) + 2 * q_bytes + mask_bytes);
        buffer_ = g_.backend_cpu_buffer_from_ptr(memory_->data(), memory_->size());
        constexpr size_t kNodes = 8; // of a layer's graph: the operator and three views
        // Names and shapes of a layer's tensors and its graph; forks have larger structs than the headers here say.
        ctx_ =
            g_.init({static_cast<size_t>(layers) * (8 * 1024 + 2 * ggml_graph_overhead_custom(kNodes, false)) + (1 << 20), nullptr, true});
        if (!buffer_ || !ctx_) throw failure("no memory for ggml's tensors");

        uint8_t*           at   = memory_->data() + 2 * operand_bytes_ * static_cast<size_t>(layers);
        ggml_tensor* const q    = g_.new_tensor_3d(ctx_, GGML_TYPE_F32, shape_.head_dim, shape_.n_heads, shape_.n_tokens);
        ggml_tensor* const mask = g_.new_tensor_2d(ctx_, GGML_TYPE_F16, n_keys, data.mask_rows);
        g_.backend_tensor_alloc(buffer_, q, at), std::memcpy(at, data.q.data(), sizeof(float) * shape_.rows_floats()), at += q_bytes;
        g_.backend_tensor_alloc(buffer_, mask, at), fill_mask(data, reinterpret_cast<uint16_t*>(at)), at += mask_bytes;
        out_ = reinterpret_cast<float*>(at);
        fill();
        for (int l = 0; l < layers; l++) {
            ggml_tensor* kv[2];
            for (int v = 0; v < 2; v++) {
                ggml_tensor* const t = g_.new_tensor_3d(ctx_, type, shape_.head_dim, shape_.n_kv_heads, n_keys);
                g_.backend_tensor_alloc(buffer_, t, operand(l, v));
                kv[v] = g_.permute(ctx_, t, 0, 2, 1, 3);
            }
            ggml_tensor* const result =
                g_.flash_attn_ext(ctx_, g_.permute(ctx_, q, 0, 2, 1, 3), kv[0], kv[1], mask, shape_.scale(), 0.0f, 0.0f);
            g_.backend_tensor_alloc(buffer_, result, out_); // the same for all layers, like llama.cpp's compute buffer
            graphs_.push_back(g_.new_graph_custom(ctx_, kNodes, false));
            g_.build_forward_expand(graphs_.back(), result);
        }
    }
    ~LlamaAttention() override {
        g_.free(ctx_);
        g_.backend_buffer_free(buffer_);
        g_.backend_free(g_.backend);
    }
    // A graph per operation: starting one costs microseconds, an operation milliseconds.
    void attend(int layer) override {
        if (g_.backend_graph_compute(g_.backend, graphs_[static_cast<size_t>(layer)]) != GGML_STATUS_SUCCESS)
            throw failure(name + ": ggml failed");
    }
    const float*    output() const override { return out_; }
    double          huge() const override { return bench::huge_share(memory_->data(), memory_->size()); }
    bench::HeadRows rows(int kv_head) const override {
        const size_t    d = static_cast<size_t>(shape_.head_dim), row = ggml_row_size(type_, shape_.head_dim);
        bench::HeadRows r;
        r.other = 0.1; // sums of V in f16, queries in q8_0: what must be caught here is a wrong layout
        std::vector<float> x(d);
        for (int v = 0; v < 2; v++)
            for (int64_t j = 0; j < shape_.n_kv; j++) {
                const uint8_t* const from = operand(0, v) + (static_cast<size_t>(j) * shape_.n_kv_heads + kv_head) * row;
                ggml_get_type_traits(type_)->to_float(from, x.data(), shape_.head_dim);
                (v ? r.v : r.k).insert((v ? r.v : r.k).end(), x.begin(), x.end());
            }
        return r;
    }

private:
    static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }
    uint8_t*      operand(int layer, int v) const { return memory_->data() + operand_bytes_ * static_cast<size_t>(2 * layer + v); }
    // Keys that only make up the number are hidden.
    void fill_mask(const bench::AttentionData& data, uint16_t* to) const {
        constexpr uint16_t kNegInf = 0xfc00;
        for (int row = 0; row < data.mask_rows; row++, to += n_keys_) {
            std::copy_n(data.mask.begin() + static_cast<ptrdiff_t>(row * shape_.n_kv), shape_.n_kv, to);
            std::fill(to + shape_.n_kv, to + n_keys_, kNegInf);
        }
    }
    // [token][kv_head][head_dim], the first layer; the others are copies. Rows that only make up the number stay zero.
    void fill() const {
        const size_t       row = ggml_row_size(type_, shape_.head_dim);
        std::vector<float> x(static_cast<size_t>(shape_.head_dim));
        for (int v = 0; v < 2; v++) {
            uint8_t* to = operand(0, v);
            for (int64_t j = 0; j < shape_.n_kv; j++)
                for (int h = 0; h < shape_.n_kv_heads; h++, to += row) {
                    bench::cached_row(v ? Operand::V : Operand::K, h, j, x);
                    ggml_quantize_chunk(type_, x.data(), to, 0, 1, shape_.head_dim, nullptr);
                }
        }
        for (int l = 1; l < layers; l++) std::memcpy(operand(l, 0), operand(0, 0), 2 * operand_bytes_);
    }

    Ggml                               g_;
    ggml_type                          type_;
    bench::AttentionShape              shape_;
    int64_t                            n_keys_; // those of the shape, and more where the library wants a round number
    size_t                             operand_bytes_;
    std::unique_ptr<bench::HugeBuffer> memory_;
    ggml_backend_buffer_t              buffer_ = nullptr;
    ggml_context*                      ctx_    = nullptr;
    std::vector<ggml_cgraph*>          graphs_;
    float*                             out_ = nullptr; // [token][head][head_dim]
};

} // namespace

std::unique_ptr<bench::Contender> make_llama_attention(const std::string& library, const std::string& name, const std::string& type,
                                                       const bench::AttentionData& data, double total_bytes, int threads) {
    const ggml_type t = stock_type(type);
    if (data.shape.head_dim % ggml_blck_size(t) != 0)
        throw failure(fmt::format("{}: head_dim {} is no multiple of {}", name, data.shape.head_dim, ggml_blck_size(t)));
    // llama.cpp and its forks see their caches in steps of 256 cells. This one's operator takes any number; a fork's fast kernels may not.
    constexpr int64_t kStep = 256;
    const int64_t     n     = data.shape.n_kv;
    return std::make_unique<LlamaAttention>(library.empty() ? linked_ggml(threads) : loaded_ggml(library, threads), name, t, data,
                                            library.empty() ? n : (n + kStep - 1) / kStep * kStep, total_bytes);
}

} // namespace tightkv::tool
