// Shapes, tensors, values and vocabulary of random-weight models, without a host.
#include "synth_model.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "errors.h"

using namespace tightkv::tool;

namespace {

SynthOverrides given(std::initializer_list<std::pair<const char*, int>> options) {
    SynthOverrides out;
    for (const auto& [option, value] : options) {
        size_t i = 0;
        while (std::string(kSynthFields.at(i).option) != option) i++;
        out[i] = value;
    }
    return out;
}

void expect_refused(std::initializer_list<std::pair<const char*, int>> options, const char* preset, const char* type,
                    std::initializer_list<const char*> parts) {
    try {
        make_shape(preset, given(options), type);
        FAIL() << *parts.begin();
    } catch (const Failure& f) {
        EXPECT_EQ(f.exit_code, kExitUsage);
        for (const char* p : parts) EXPECT_NE(std::string(f.what()).find(p), std::string::npos) << f.what() << " lacks " << p;
    }
}

} // namespace

// Parameters as published; the last two without the output matrix, which here is the token embedding.
TEST(Synth, PresetsHaveTheParametersOfTheirModels) {
    const std::pair<const char*, int64_t> published[] = {{"smollm2-135m", 134515008},
                                                         {"llama-1b", 1235814400},
                                                         {"llama-8b", 8030261248 - 128256LL * 4096},
                                                         {"qwen3-30b-a3b", 30532122624 - 151936LL * 2048}};
    for (const auto& [name, parameters] : published) EXPECT_EQ(synth_parameters(make_shape(name, {}, "q4_0")), parameters) << name;
    for (const SynthPreset& p : synth_presets()) EXPECT_NO_THROW(make_shape(p.name, {}, "q4_0")) << p.name;
}

TEST(Synth, OverridesReplaceWhatTheyName) {
    const SynthShape s = make_shape("llama-1b", given({{"--head-dim", 96}, {"--kv-heads", 1}, {"--vocab", 32000}}), "f16");
    EXPECT_EQ(as_options(s), "--layers 16 --embd 2048 --heads 32 --kv-heads 1 --head-dim 96 --ff 8192 --vocab 32000 --ctx 32768");
    EXPECT_EQ(s.type, "f16");
    EXPECT_STREQ(synth_architecture(s), "llama");
    EXPECT_STREQ(synth_architecture(make_shape("moe-small", {}, "q4_K")), "qwen3moe");
    EXPECT_NO_THROW(make_shape("moe-small", given({{"--experts", 0}, {"--experts-used", 0}}), "q4_0"));
    EXPECT_NO_THROW(make_shape("llama-1b", given({{"--experts", 8}, {"--experts-used", 2}}), "q4_0"));
}

TEST(Synth, RefusalsNameTheOptionAndWhatIsAccepted) {
    expect_refused({}, "llama-2b", "q4_0", {"--shape", "'llama-2b'", "smollm2-135m, llama-1b"});
    expect_refused({}, "llama-1b", "q9_0", {"--type", "'q9_0'", "f32, f16", "q4_K"});
    expect_refused({}, "llama-1b", "iq2_xs", {"--type", "'iq2_xs'"}); // would need an importance matrix
    expect_refused({{"--layers", 0}}, "llama-1b", "q4_0", {"--layers 0", "1 to 512"});
    expect_refused({{"--head-dim", 1026}}, "llama-1b", "q4_0", {"--head-dim 1026", "2 to 1024"});
    expect_refused({{"--head-dim", 63}}, "llama-1b", "f16", {"--head-dim 63", "even"});
    expect_refused({{"--vocab", 259}}, "llama-1b", "q4_0", {"--vocab 259", "260 to 1048576"});
    expect_refused({{"--kv-heads", 3}}, "llama-1b", "q4_0", {"--kv-heads 3", "--heads 32", "1, 2, 4, 8, 16, 32"});
    expect_refused({{"--experts", 1}}, "llama-1b", "q4_0", {"--experts 1", "2 to 512"});
    expect_refused({{"--experts", 8}}, "llama-1b", "q4_0", {"--experts-used 0", "1 to 8"});
    expect_refused({{"--experts", 8}, {"--experts-used", 9}}, "llama-1b", "q4_0", {"--experts-used 9", "1 to 8"});
    expect_refused({{"--experts-used", 2}}, "llama-1b", "q4_0", {"--experts-used 2", "--experts"});
    expect_refused({}, "smollm2-135m", "q4_K", {"--embd 576", "256", "q4_K", "q4_0"});
    expect_refused({{"--embd", 80}}, "llama-1b", "q4_0", {"--embd 80", "32", "f32, f16, bf16"});
    expect_refused({{"--heads", 1}, {"--kv-heads", 1}, {"--head-dim", 80}}, "llama-1b", "q8_0", {"--heads 1 times --head-dim 80"});
    expect_refused({{"--ff", 100}}, "llama-1b", "q8_0", {"--ff 100"});
}

TEST(Synth, TensorsOfOneLayer) {
    const auto tensors =
        synth_tensors(make_shape("moe-small", given({{"--layers", 1}, {"--kv-heads", 1}, {"--head-dim", 96}, {"--vocab", 300}}), "q4_0"));
    std::set<std::string> names;
    for (const SynthTensor& t : tensors) {
        EXPECT_TRUE(names.insert(t.name).second) << t.name;
        EXPECT_EQ(t.kind == SynthTensor::kOnes, t.name.find("norm") != std::string::npos) << t.name;
        if (t.name == "blk.0.attn_k.weight") {
            EXPECT_EQ(t.size, (std::array<int64_t, 3>{1024, 96, 1}));
        }
        if (t.name == "blk.0.attn_output.weight") {
            EXPECT_EQ(t.size, (std::array<int64_t, 3>{16 * 96, 1024, 1}));
        }
        if (t.name == "blk.0.ffn_down_exps.weight") {
            EXPECT_EQ(t.size, (std::array<int64_t, 3>{512, 1024, 32}));
        }
    }
    EXPECT_EQ(tensors.size(), 14u);
}

// From an implementation of its own, in Python.
TEST(Synth, ValuesAreTheSameEverywhere) {
    std::vector<float> v(4);
    synth_values(1, 0, 64, 0, v);
    EXPECT_EQ(v, (std::vector<float>{-0x1.2e06cp-4F, 0x1.9784e2p-5F, -0x1.20d8b6p-3F, 0x1.52feacp-6F}));
    v.resize(2);
    synth_values(1, 0, 64, 1000000, v);
    EXPECT_EQ(v, (std::vector<float>{-0x1.b5fe0ap-5F, 0x1.bfae56p-6F}));
    synth_values(7, 3, 96, 0, v);
    EXPECT_EQ(v, (std::vector<float>{-0x1.779422p-3F, 0x1.c2fefap-3F}));
}

TEST(Synth, ValuesDoNotDependOnTheirCut) {
    std::vector<float> whole(1000), part(300);
    synth_values(5, 2, 64, 0, whole);
    synth_values(5, 2, 64, 640, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 640));
}

TEST(Synth, ValuesKeepTheSizeOfActivations) {
    constexpr int      kRow = 256, kCount = 1 << 18;
    std::vector<float> v(kCount);
    for (const size_t tensor : {0u, 1u, 200u}) {
        synth_values(1, tensor, kRow, 0, v);
        double sum = 0, squares = 0;
        for (const double x : v) sum += x, squares += x * x;
        EXPECT_NEAR(squares * kRow / kCount, 1.0, 5 * std::sqrt(1.7 / kCount)); // variance of x^2: kurtosis 2.7, less 1
        EXPECT_NEAR(sum * std::sqrt(kRow) / kCount, 0.0, 5 / std::sqrt(kCount));
    }
}

TEST(Synth, VocabularyHasEveryByteOnceAndNoTextTwice) {
    const SynthVocab            v = synth_vocab(1000);
    const std::set<std::string> different(v.texts.begin(), v.texts.end());
    EXPECT_EQ(different.size(), 1000u);
    EXPECT_EQ(v.scores.size(), 1000u);
    EXPECT_EQ(std::count(v.types.begin(), v.types.end(), 6), 256);
    for (const char* byte : {"<0x00>", "<0x0A>", "<0xFF>"}) EXPECT_TRUE(different.contains(byte)) << byte;
    EXPECT_EQ(synth_vocab(kSynthMinVocab).texts.back(), "\u2581");
}
