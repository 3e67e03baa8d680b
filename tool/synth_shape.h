// The shape of a random-weight model: presets, what can be overridden, and what is accepted.
#pragma once
#include <array>
#include <optional>
#include <span>
#include <string>

namespace tightkv::tool {

struct SynthShape {
    int         layers, embd, heads, kv_heads, head_dim;
    int         ff;                    // of one expert, where there are experts
    int         experts, experts_used; // 0: dense
    int         vocab, ctx;
    std::string type = "q4_0"; // of the matrices
};

// What the command line can set, in the order of its help.
struct SynthField {
    const char* option;
    int SynthShape::*value;
    int              min, max; // the host's limits, or what its formats can hold
    const char*      meaning;
};
inline constexpr int kSynthMinVocab = 260; // three control tokens, 256 bytes and the blank

inline constexpr std::array<SynthField, 10> kSynthFields{{
    {"--layers", &SynthShape::layers, 1, 512, "layers"},
    {"--embd", &SynthShape::embd, 32, 65536, "width of the residual stream"},
    {"--heads", &SynthShape::heads, 1, 1024, "query heads"},
    {"--kv-heads", &SynthShape::kv_heads, 1, 1024, "KV heads; must divide --heads"},
    {"--head-dim", &SynthShape::head_dim, 2, 1024, "values per head, even; need not be --embd / --heads"},
    {"--ff", &SynthShape::ff, 32, 1 << 20, "width of the feed-forward layer, or of one expert"},
    {"--experts", &SynthShape::experts, 0, 512, "experts per layer; 0: dense"},
    {"--experts-used", &SynthShape::experts_used, 0, 512, "experts a token goes through"},
    {"--vocab", &SynthShape::vocab, kSynthMinVocab, 1 << 20, "tokens of the vocabulary"},
    {"--ctx", &SynthShape::ctx, 8, 1 << 24, "context length the file names"},
}};
using SynthOverrides = std::array<std::optional<int>, kSynthFields.size()>; // by index into kSynthFields

// Types of matrices: those of the usual files that ggml quantises without an importance matrix.
struct SynthType {
    const char* name;      // ggml's
    int         block;     // rows are multiples of it
    int         file_type; // general.file_type, numbered as in the GGUF specification
};
std::span<const SynthType> synth_types();
const SynthType&           synth_type(const std::string& name); // throws a usage error that lists the accepted ones

struct SynthPreset {
    const char* name;
    SynthShape  shape;
};
std::span<const SynthPreset> synth_presets();

// The preset with the overrides; throws a usage error naming the option at fault and what is accepted.
SynthShape make_shape(const std::string& preset, const SynthOverrides& overrides, const std::string& type);

std::string as_options(const SynthShape& shape); // "--layers 30 --embd 576 …": zeros are left out

} // namespace tightkv::tool
