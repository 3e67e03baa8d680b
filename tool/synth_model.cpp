#include "synth_model.h"

#include <cmath>

#include <fmt/format.h>

namespace tightkv::tool {

namespace {

// One step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): an invertible mix of all bits.
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
constexpr uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

} // namespace

const char* synth_architecture(const SynthShape& s) { return s.experts > 0 ? "qwen3moe" : "llama"; }

std::vector<SynthTensor> synth_tensors(const SynthShape& s) {
    const int64_t            embd = s.embd, q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim, ff = s.ff;
    std::vector<SynthTensor> out;
    out.push_back({"token_embd.weight", {embd, s.vocab, 1}, SynthTensor::kMatrix}); // also the output matrix
    out.push_back({"output_norm.weight", {embd, 1, 1}, SynthTensor::kOnes});
    for (int layer = 0; layer < s.layers; layer++) {
        const auto add = [&](const char* name, std::array<int64_t, 3> size, SynthTensor::Kind kind = SynthTensor::kMatrix) {
            out.push_back({fmt::format("blk.{}.{}.weight", layer, name), size, kind});
        };
        add("attn_norm", {embd, 1, 1}, SynthTensor::kOnes);
        add("attn_q", {embd, q, 1});
        add("attn_k", {embd, kv, 1});
        add("attn_v", {embd, kv, 1});
        add("attn_output", {q, embd, 1});
        add("ffn_norm", {embd, 1, 1}, SynthTensor::kOnes);
        if (s.experts == 0) {
            add("ffn_gate", {embd, ff, 1});
            add("ffn_up", {embd, ff, 1});
            add("ffn_down", {ff, embd, 1});
            continue;
        }
        add("attn_q_norm", {s.head_dim, 1, 1}, SynthTensor::kOnes);
        add("attn_k_norm", {s.head_dim, 1, 1}, SynthTensor::kOnes);
        add("ffn_gate_inp", {embd, s.experts, 1}, SynthTensor::kExact);
        add("ffn_gate_exps", {embd, ff, s.experts});
        add("ffn_up_exps", {embd, ff, s.experts});
        add("ffn_down_exps", {ff, embd, s.experts});
    }
    return out;
}

int64_t synth_parameters(const SynthShape& shape) {
    int64_t n = 0;
    for (const SynthTensor& t : synth_tensors(shape)) n += t.values();
    return n;
}

void synth_values(uint64_t seed, size_t tensor, int64_t row_length, int64_t first, std::span<float> out) {
    // The sum of four uniform 16-bit integers is near enough to normal, bounded (3.46 standard deviations), and exact in F32.
    // Its mean is 2 * 65535, its variance 4 * (65536^2 - 1) / 12.
    constexpr int  kMean  = 2 * 65535;
    const float    scale  = static_cast<float>(1 / std::sqrt(static_cast<double>(row_length) * ((65536.0 * 65536.0 - 1) / 3)));
    const uint64_t stream = mix(mix(seed + kGolden) + (tensor + 1) * kGolden);
    uint64_t       state  = stream + static_cast<uint64_t>(first) * kGolden;
    for (float& x : out) {
        const uint64_t h   = mix(state += kGolden);
        const auto     sum = static_cast<int>((h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48));
        x                  = static_cast<float>(sum - kMean) * scale;
    }
}

SynthVocab synth_vocab(int size) {
    constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6;
    SynthVocab        v;
    const auto        add = [&](std::string text, int32_t type) {
        v.scores.push_back(-static_cast<float>(v.texts.size()));
        v.texts.push_back(std::move(text));
        v.types.push_back(type);
    };
    add("<unk>", kUnknown);
    add("<s>", kControl);
    add("</s>", kControl);
    for (int b = 0; b < 256; b++) add(fmt::format("<0x{:02X}>", b), kByte);
    add("\u2581", kNormal); // the blank: llama.cpp puts this in its place
    // A text is merged pair by pair into tokens, and no pair of characters is a token: filler is never made from text, only generated.
    for (int i = kSynthMinVocab; i < size; i++) add(fmt::format("\u2581w{}", i), kNormal);
    return v;
}

} // namespace tightkv::tool
