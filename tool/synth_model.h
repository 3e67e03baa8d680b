// What is in a random-weight model: its tensors, its values and its vocabulary. All of it follows from the shape and the seed by integer
// arithmetic and correctly rounded operations, so that it is the same on every machine. Knows nothing of files.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "synth_shape.h"

namespace tightkv::tool {

struct SynthTensor {
    std::string            name;               // llama.cpp's
    std::array<int64_t, 3> size;               // [row length][rows][experts], as ggml counts
    enum Kind { kOnes, kExact, kMatrix } kind; // norms: ones in F32; routers: random in F32; all others: random in the model's type

    int64_t rows() const { return size[1] * size[2]; }
    int64_t values() const { return size[0] * rows(); }
};

// "llama", or "qwen3moe" where there are experts: both know GQA and any head_dim, in every llama.cpp this project is tested with.
const char*              synth_architecture(const SynthShape& shape);
std::vector<SynthTensor> synth_tensors(const SynthShape& shape);
int64_t                  synth_parameters(const SynthShape& shape);

// Values first, first + 1, … of tensor number `tensor`, in any order and from any thread. Mean 0, standard deviation 1 / sqrt(row_length):
// a product with a row keeps the size of what comes in, so activations stay finite and logits have a standard deviation near 1.
void synth_values(uint64_t seed, size_t tensor, int64_t row_length, int64_t first, std::span<float> out);

// A SentencePiece vocabulary that spells every text in bytes: <unk>, <s>, </s>, 256 bytes, the blank, and filler that no text contains.
struct SynthVocab {
    std::vector<std::string> texts;
    std::vector<float>       scores;
    std::vector<int32_t>     types; // as in the GGUF specification
};
SynthVocab synth_vocab(int size); // size >= kSynthMinVocab

} // namespace tightkv::tool
