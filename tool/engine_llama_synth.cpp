// GGUF files of random weights: the host's own writer of metadata and its own quantisers, a piece of a tensor at a time.
#include <algorithm>
#include <memory>
#include <thread>

#include <fmt/format.h>

#include "engine_llama.h"
#include "engine_llama_private.h"
#include "errors.h"
#include "gguf.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"
#include "synth_model.h"

namespace tightkv::tool {

namespace {

using File = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

constexpr int64_t kRound = 1 << 22; // values of one thread between two writes: what is held in memory
constexpr int64_t kPiece = 1 << 16; // values generated before they are quantised: stay in the L2 cache

void set_shape(gguf_context* f, const SynthShape& s) {
    const std::string arch = synth_architecture(s);
    const auto set = [&](const char* key, int value) { gguf_set_val_u32(f, (arch + "." + key).c_str(), static_cast<uint32_t>(value)); };
    gguf_set_val_str(f, "general.architecture", arch.c_str());
    set("context_length", s.ctx);
    set("embedding_length", s.embd);
    set("block_count", s.layers);
    set("attention.head_count", s.heads);
    set("attention.head_count_kv", s.kv_heads);
    set("attention.key_length", s.head_dim);
    set("attention.value_length", s.head_dim);
    set("rope.dimension_count", s.head_dim);
    gguf_set_val_f32(f, (arch + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5F);
    set("feed_forward_length", s.experts > 0 ? s.ff * s.experts_used : s.ff);
    set("vocab_size", s.vocab);
    if (s.experts > 0) {
        set("expert_count", s.experts);
        set("expert_used_count", s.experts_used);
        set("expert_feed_forward_length", s.ff);
    }
    gguf_set_val_u32(f, "general.file_type", static_cast<uint32_t>(synth_type(s.type).file_type));
    gguf_set_val_u32(f, "general.quantization_version", GGML_QNT_VERSION);
}

void set_vocab(gguf_context* f, int size) {
    const SynthVocab         v = synth_vocab(size);
    std::vector<const char*> texts;
    for (const std::string& t : v.texts) texts.push_back(t.c_str());
    gguf_set_val_str(f, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(f, "tokenizer.ggml.tokens", texts.data(), texts.size());
    gguf_set_arr_data(f, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, v.scores.data(), v.scores.size());
    gguf_set_arr_data(f, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, v.types.data(), v.types.size());
    gguf_set_val_u32(f, "tokenizer.ggml.unknown_token_id", 0);
    gguf_set_val_u32(f, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(f, "tokenizer.ggml.eos_token_id", 2);
    gguf_set_val_bool(f, "tokenizer.ggml.add_bos_token", true);
    gguf_set_val_bool(f, "tokenizer.ggml.add_space_prefix", false); // a text comes back as it was
}

void add_tensors(gguf_context* f, const std::vector<SynthTensor>& tensors, ggml_type type) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> names(
        ggml_init({.mem_size = ggml_tensor_overhead() * tensors.size(), .mem_buffer = nullptr, .no_alloc = true}), &ggml_free);
    for (const SynthTensor& t : tensors) {
        ggml_tensor* g = ggml_new_tensor(names.get(), t.kind == SynthTensor::kMatrix ? type : GGML_TYPE_F32, 3, t.size.data());
        ggml_set_name(g, t.name.c_str());
        gguf_add_tensor(f, g);
    }
}

// Writes tensors; buffers are kept from one to the next.
class Writer {
public:
    Writer(uint64_t seed, int threads, OutputFile& out, Progress& progress)
        : seed_(seed), threads_(threads), out_(out), progress_(progress), pieces_(static_cast<size_t>(threads)) {}

    void write(const SynthTensor& t, size_t number, ggml_type type) {
        const int64_t length = t.size[0], rows = t.rows(), bytes = static_cast<int64_t>(ggml_row_size(type, length));
        const int64_t per_thread = std::max<int64_t>(1, kRound / length);
        for (int64_t row = 0; row < rows;) {
            const int64_t n = std::min(rows - row, per_thread * threads_);
            packed_.resize(static_cast<size_t>(n * bytes));
            {
                std::vector<std::jthread> pool;
                const int64_t             share = (n + threads_ - 1) / threads_;
                for (int i = 0; i * share < n; i++)
                    pool.emplace_back([&, i] {
                        fill(t, number, type, row + i * share, std::min(share, n - i * share), packed_.data() + i * share * bytes,
                             pieces_[static_cast<size_t>(i)]);
                    });
            }
            out_.append(packed_);
            progress_.advance(static_cast<double>(n * length));
            if (interrupted()) throw Failure("interrupted; nothing was written", kExitInterrupted);
            row += n;
        }
    }

private:
    void fill(const SynthTensor& t, size_t number, ggml_type type, int64_t row, int64_t rows, char* to, std::vector<float>& piece) const {
        const int64_t length = t.size[0], most = std::max<int64_t>(1, kPiece / length);
        for (const int64_t end = row + rows; row < end;) {
            const int64_t n = std::min(most, end - row);
            piece.resize(static_cast<size_t>(n * length));
            if (t.kind == SynthTensor::kOnes) std::fill(piece.begin(), piece.end(), 1.0F);
            else synth_values(seed_, number, length, row * length, piece);
            to += ggml_quantize_chunk(type, piece.data(), to, 0, n, length, nullptr);
            row += n;
        }
    }

    uint64_t                        seed_;
    int                             threads_;
    OutputFile&                     out_;
    Progress&                       progress_;
    std::vector<std::vector<float>> pieces_; // by thread
    std::vector<char>               packed_;
};

} // namespace

int64_t write_synth(const SynthShape& shape, uint64_t seed, int threads, OutputFile& out, Progress& progress) {
    const std::vector<SynthTensor> tensors = synth_tensors(shape);
    const ggml_type                type    = stock_type(shape.type);
    const File                     file(gguf_init_empty(), &gguf_free);
    set_shape(file.get(), shape);
    gguf_set_val_str(file.get(), "general.name", "tightkv synth");
    gguf_set_val_str(file.get(), "general.description",
                     fmt::format("random weights: {} --type {} --seed {}", as_options(shape), shape.type, seed).c_str());
    set_vocab(file.get(), shape.vocab);
    add_tensors(file.get(), tensors, type);

    std::vector<char> bytes(gguf_get_meta_size(file.get()));
    gguf_get_meta_data(file.get(), bytes.data());
    out.append(bytes);
    auto   size = static_cast<int64_t>(bytes.size());
    Writer writer(seed, threads, out, progress);
    for (size_t i = 0; i < tensors.size(); i++) {
        const auto    id     = static_cast<int64_t>(i);
        const int64_t length = static_cast<int64_t>(gguf_get_tensor_size(file.get(), id));
        const int64_t padded = GGML_PAD(length, static_cast<int64_t>(gguf_get_alignment(file.get())));
        writer.write(tensors[i], i, gguf_get_tensor_type(file.get(), id));
        out.append(std::vector<char>(static_cast<size_t>(padded - length)));
        size += padded;
    }
    ggml_quantize_free();
    out.finish();
    return size;
}

} // namespace tightkv::tool
