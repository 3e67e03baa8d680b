// A model of one layer (with a sliding window: four) with random weights and a vocabulary of characters: what llama.cpp needs in order to
// load and run, and no more.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace tightkv::tool::test {

struct TinyModel {
    int      head_dim = 64;
    int      n_embd   = 256;   // where it is 4 * head_dim, the file leaves head_dim to be computed, as older files do
    bool     mixed    = false; // weights in several quantised types, one in f16; else all in f32
    unsigned seed     = 1;
    bool     sliding  = false; // three layers that see kTinyWindow tokens and have RoPE, then one that sees all and has none
    float    key_bias = 0;     // deviation of a constant that all keys get before RoPE; not with `sliding`
};
inline constexpr int kTinyWindow = 16;

void write_tiny_model(const std::string& path, const TinyModel& m = {});

struct TensorInFile {
    std::string          type;
    std::vector<int64_t> shape;
    std::vector<float>   values; // dequantised by ggml
    bool                 operator==(const TensorInFile&) const = default;
};
// By name; empty where the file is no complete GGUF file.
std::map<std::string, TensorInFile> read_tensors(const std::string& path);

} // namespace tightkv::tool::test
