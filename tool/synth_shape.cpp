#include "synth_shape.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "errors.h"

namespace tightkv::tool {

namespace {

constexpr SynthType kTypes[] = {
    {"f32", 1, 0},     {"f16", 1, 1},     {"bf16", 1, 32},   {"q8_0", 32, 7},    {"q6_K", 256, 18},
    {"q5_K", 256, 16}, {"q5_1", 32, 9},   {"q5_0", 32, 8},   {"q4_K", 256, 14},  {"q4_1", 32, 3},
    {"q4_0", 32, 2},   {"q3_K", 256, 11}, {"q2_K", 256, 10}, {"iq4_nl", 32, 25}, {"iq4_xs", 256, 30},
};

// Shapes of published models. Two things are ours: contexts end at 32768, because some programs allocate a cache of the context's size
// unless told otherwise, and the output matrix is always the token embedding.
const SynthPreset kPresets[] = {
    {"smollm2-135m", {30, 576, 9, 3, 64, 1536, 0, 0, 49152, 8192}},        {"llama-1b", {16, 2048, 32, 8, 64, 8192, 0, 0, 128256, 32768}},
    {"llama-8b", {32, 4096, 32, 8, 128, 14336, 0, 0, 128256, 32768}},      {"moe-small", {16, 1024, 16, 4, 128, 512, 32, 4, 32000, 32768}},
    {"qwen3-30b-a3b", {48, 2048, 32, 4, 128, 768, 128, 8, 151936, 32768}},
};

// The names of a list, for messages.
template <class List> std::string names(const List& list) {
    std::vector<std::string> out;
    for (const auto& item : list) out.emplace_back(item.name);
    return fmt::format("{}", fmt::join(out, ", "));
}

template <class List> const auto& named(const List& list, const std::string& name, const char* option) {
    const auto at = std::find_if(std::begin(list), std::end(list), [&](const auto& item) { return item.name == name; });
    if (at == std::end(list)) throw usage_error(fmt::format("unknown {} '{}'; accepted: {}", option, name, names(list)));
    return *at;
}

void check_ranges(const SynthShape& s) {
    for (const SynthField& f : kSynthFields)
        if (const int v = s.*f.value; v < f.min || v > f.max)
            throw usage_error(fmt::format("{} {} is out of range; accepted: {} to {}", f.option, v, f.min, f.max));
}

void check_heads(const SynthShape& s) {
    if (s.heads % s.kv_heads != 0) {
        std::vector<int> divisors;
        for (int d = 1; d <= s.heads; d++)
            if (s.heads % d == 0) divisors.push_back(d);
        throw usage_error(
            fmt::format("--kv-heads {} does not divide --heads {}; accepted: {}", s.kv_heads, s.heads, fmt::join(divisors, ", ")));
    }
    if (s.head_dim % 2 != 0)
        throw usage_error(fmt::format("--head-dim {} is odd, and rotary positions turn pairs; accepted: even numbers", s.head_dim));
}

void check_experts(const SynthShape& s) {
    if (s.experts == 1) throw usage_error("--experts 1 is a dense model; accepted: 0 for that, or 2 to 512");
    if (s.experts == 0 && s.experts_used != 0)
        throw usage_error(fmt::format("--experts-used {} without experts; accepted: 0, or give --experts", s.experts_used));
    if (s.experts > 0 && (s.experts_used < 1 || s.experts_used > s.experts))
        throw usage_error(fmt::format("--experts-used {} with --experts {}; accepted: 1 to {}", s.experts_used, s.experts, s.experts));
}

// The rows of every matrix are one of three lengths.
void check_rows(const SynthShape& s) {
    const SynthType&         type = synth_type(s.type);
    std::vector<std::string> fitting;
    for (const SynthType& t : kTypes)
        if (s.embd % t.block == 0 && s.heads * s.head_dim % t.block == 0 && s.ff % t.block == 0) fitting.emplace_back(t.name);
    const auto check = [&](const std::string& what, int length) {
        if (length % type.block != 0)
            throw usage_error(fmt::format("{} is not a multiple of {}, the block of --type {}; accepted with this shape: {}", what,
                                          type.block, type.name, fmt::join(fitting, ", ")));
    };
    check(fmt::format("--embd {}", s.embd), s.embd);
    check(fmt::format("--heads {} times --head-dim {}", s.heads, s.head_dim), s.heads * s.head_dim);
    check(fmt::format("--ff {}", s.ff), s.ff);
}

} // namespace

std::span<const SynthType>   synth_types() { return kTypes; }
std::span<const SynthPreset> synth_presets() { return kPresets; }

const SynthType& synth_type(const std::string& name) { return named(kTypes, name, "--type"); }

SynthShape make_shape(const std::string& preset, const SynthOverrides& overrides, const std::string& type) {
    SynthShape s = named(kPresets, preset, "--shape").shape;
    s.type       = type;
    for (size_t i = 0; i < kSynthFields.size(); i++)
        if (overrides[i]) s.*kSynthFields[i].value = *overrides[i];
    check_ranges(s);
    check_heads(s);
    check_experts(s);
    check_rows(s);
    return s;
}

std::string as_options(const SynthShape& shape) {
    std::string out;
    for (const SynthField& f : kSynthFields)
        if (shape.*f.value != 0) out += fmt::format("{}{} {}", out.empty() ? "" : " ", f.option, shape.*f.value);
    return out;
}

} // namespace tightkv::tool
