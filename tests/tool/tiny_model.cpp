#include "tiny_model.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "ggml.h"
#include "gguf.h"

namespace tightkv::tool::test {

namespace {

constexpr int kHeads = 4, kKvHeads = 2, kCtx = 1024, kFeedForward = 256;

struct Free {
    void operator()(gguf_context* g) const { gguf_free(g); }
    void operator()(ggml_context* g) const { ggml_free(g); }
};
using Gguf = std::unique_ptr<gguf_context, Free>;
using Ggml = std::unique_ptr<ggml_context, Free>;

// A sentencepiece vocabulary that knows no words: unknown, begin, end, the printable characters of ASCII (with its sign for a blank), and
// all bytes, into which other text falls back. (Whole texts as bytes would take this host's tokeniser seconds.)
int add_vocabulary(gguf_context* file) {
    constexpr int32_t        kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6; // token types of GGUF
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t>     types  = {kUnknown, kControl, kControl};
    for (int b = 0; b < 256; b++) {
        char text[8];
        std::snprintf(text, sizeof text, "<0x%02X>", b);
        tokens.emplace_back(text);
        types.push_back(kByte);
    }
    tokens.emplace_back("\xe2\x96\x81"); // U+2581
    for (char c = '!'; c <= '~'; c++) tokens.emplace_back(1, c);
    types.resize(tokens.size(), kNormal);
    const std::vector<float> scores(tokens.size(), 0.0f);
    std::vector<const char*> texts;
    for (const std::string& t : tokens) texts.push_back(t.c_str());
    gguf_set_val_str(file, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(file, "tokenizer.ggml.tokens", texts.data(), texts.size());
    gguf_set_arr_data(file, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    gguf_set_arr_data(file, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
    return static_cast<int>(tokens.size());
}

} // namespace

void write_tiny_model(const std::string& path, const TinyModel& m) {
    const Gguf        file(gguf_init_empty());
    gguf_context*     g    = file.get();
    const std::string arch = m.sliding ? "cohere2" : "llama";
    gguf_set_val_str(g, "general.architecture", arch.c_str());
    const auto set    = [&](const char* key, int value) { gguf_set_val_u32(g, (arch + "." + key).c_str(), static_cast<uint32_t>(value)); };
    const int  layers = m.sliding ? 4 : 1;
    set("block_count", layers);
    set("context_length", kCtx);
    set("embedding_length", m.n_embd);
    set("feed_forward_length", kFeedForward);
    set("attention.head_count", kHeads);
    set("attention.head_count_kv", kKvHeads);
    set("rope.dimension_count", m.head_dim);
    if (m.head_dim * kHeads != m.n_embd) set("attention.key_length", m.head_dim), set("attention.value_length", m.head_dim);
    if (m.sliding) {
        set("attention.sliding_window", kTinyWindow);
        gguf_set_val_f32(g, "cohere2.attention.layer_norm_epsilon", 1e-5f);
        gguf_set_val_f32(g, "cohere2.logit_scale", 0.25f);
    } else {
        gguf_set_val_f32(g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    }
    const int n_vocab = add_vocabulary(g);

    const Ggml                 tensors(ggml_init({.mem_size = size_t{16} << 20, .mem_buffer = nullptr, .no_alloc = false}));
    std::mt19937               random(m.seed);
    std::normal_distribution<> normal(0, 0.5);
    const auto                 add = [&](const std::string& name, ggml_type type, int columns, int rows) {
        std::vector<float> values(static_cast<size_t>(columns) * static_cast<size_t>(rows));
        for (float& v : values) v = static_cast<float>(normal(random));
        ggml_tensor* t = rows == 1 ? ggml_new_tensor_1d(tensors.get(), GGML_TYPE_F32, columns)
                                                   : ggml_new_tensor_2d(tensors.get(), m.mixed ? type : GGML_TYPE_F32, columns, rows);
        ggml_set_name(t, name.c_str());
        if (t->type == GGML_TYPE_F32) std::memcpy(t->data, values.data(), values.size() * sizeof(float));
        else ggml_quantize_chunk(t->type, values.data(), t->data, 0, rows, columns, nullptr);
        gguf_add_tensor(g, t);
    };
    const auto add_bias = [&](const std::string& name, int n) { // from numbers of its own: all weights are those of a model without
        std::mt19937                    other(m.seed + 1);
        std::normal_distribution<float> bias(0, m.key_bias);
        ggml_tensor*                    t = ggml_new_tensor_1d(tensors.get(), GGML_TYPE_F32, n);
        for (int i = 0; i < n; i++) static_cast<float*>(t->data)[i] = bias(other);
        ggml_set_name(t, name.c_str());
        gguf_add_tensor(g, t);
    };
    add("token_embd.weight", GGML_TYPE_Q8_0, m.n_embd, n_vocab);
    add("output_norm.weight", GGML_TYPE_F32, m.n_embd, 1);
    for (int i = 0; i < layers; i++) {
        const std::string layer = "blk." + std::to_string(i) + ".";
        add(layer + "attn_norm.weight", GGML_TYPE_F32, m.n_embd, 1);
        add(layer + "attn_q.weight", GGML_TYPE_Q4_0, m.n_embd, kHeads * m.head_dim);
        add(layer + "attn_k.weight", GGML_TYPE_Q4_1, m.n_embd, kKvHeads * m.head_dim);
        if (m.key_bias > 0) add_bias(layer + "attn_k.bias", kKvHeads * m.head_dim);
        add(layer + "attn_v.weight", GGML_TYPE_F16, m.n_embd, kKvHeads * m.head_dim);
        add(layer + "attn_output.weight", GGML_TYPE_Q5_0, kHeads * m.head_dim, m.n_embd);
        if (!m.sliding) add(layer + "ffn_norm.weight", GGML_TYPE_F32, m.n_embd, 1);
        add(layer + "ffn_gate.weight", GGML_TYPE_Q4_K, m.n_embd, kFeedForward);
        add(layer + "ffn_up.weight", GGML_TYPE_Q6_K, m.n_embd, kFeedForward);
        add(layer + "ffn_down.weight", GGML_TYPE_F32, kFeedForward, m.n_embd);
    }
    ASSERT_TRUE(gguf_write_to_file(g, path.c_str(), false)) << path;
}

std::map<std::string, TensorInFile> read_tensors(const std::string& path) {
    ggml_context*                       made = nullptr;
    const Gguf                          file(gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &made}));
    const Ggml                          tensors(made);
    std::map<std::string, TensorInFile> found;
    if (!file || !tensors) return found;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++) {
        const ggml_tensor* t    = ggml_get_tensor(tensors.get(), gguf_get_tensor_name(file.get(), i));
        const int64_t      n    = ggml_nelements(t);
        TensorInFile&      to   = found[t->name];
        const auto*        from = ggml_get_type_traits(t->type);
        to.type                 = ggml_type_name(t->type);
        to.shape.assign(t->ne, t->ne + GGML_MAX_DIMS);
        to.values.resize(static_cast<size_t>(n));
        if (t->type == GGML_TYPE_F32) std::memcpy(to.values.data(), t->data, to.values.size() * sizeof(float));
        else from->to_float(t->data, to.values.data(), n);
    }
    return found;
}

} // namespace tightkv::tool::test
