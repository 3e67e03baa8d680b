// The built program: files of random weights, written and used.
#include <cmath>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "run_tool.h"
#include "text.h"

namespace tightkv::tool::test {

namespace {

namespace fs = std::filesystem;

constexpr int         kVocab = 300;
constexpr const char* kSmall = "--layers 2 --embd 64 --heads 2 --kv-heads 1 --head-dim 96 --ff 128 --vocab 300 --ctx 128";

class CliSynth : public testing::Test {
protected:
    const fs::path folder = fs::path(testing::TempDir()) / ("tightkv_synth." + std::to_string(getpid()));
    void           SetUp() override { fs::create_directories(folder); }
    void           TearDown() override { fs::remove_all(folder); }

    std::string file(const std::string& name = "model.gguf") const { return (folder / name).string(); }
    // Writes one; the name of the file.
    std::string synth(const std::string& options, const std::string& name = "model.gguf") const {
        const Outcome o = run_tool("synth " + options + " -o '" + file(name) + "'");
        EXPECT_EQ(o.exit_code, 0) << o.err;
        EXPECT_NE(error_line(o).find("wrote " + file(name)), std::string::npos) << o.err; // the one line there is
        EXPECT_EQ(o.out, "");
        return file(name);
    }
    void expect_empty_folder() const { EXPECT_TRUE(fs::is_empty(folder)); }
};

} // namespace

TEST_F(CliSynth, UsageErrorsWriteNothing) {
    const std::string to = " -o " + file();
    expect_error("synth", 2, {"--output", "tightkv synth --help"});
    expect_error("synth -o ''", 2, {"-o"});
    expect_error("synth --shape frog" + to, 2, {"'frog'", "smollm2-135m, llama-1b"});
    expect_error("synth --type q4_K" + to, 2, {"--embd 576", "q4_0"});
    expect_error("synth --type iq2_xs" + to, 2, {"iq2_xs", "q4_0"});
    expect_error("synth --kv-heads 4" + to, 2, {"--kv-heads 4", "1, 3, 9"});
    expect_error("synth --layers many" + to, 2, {"--layers", "many"});
    expect_error("synth --seed -1" + to, 2, {"--seed"});
    expect_error("synth --threads 0" + to, 2, {"--threads"});
    expect_empty_folder();
}

TEST_F(CliSynth, FailedWritesLeaveNothing) {
    expect_error("synth -o /nonexistent/x.gguf", 1, {"/nonexistent/x.gguf", "No such file"});
    expect_error("synth -o '" + folder.string() + "'", 1, {folder.c_str()});
    expect_error("synth -o /dev/full", 1, {"/dev/full", "No space left"});
    expect_empty_folder();
}

TEST_F(CliSynth, InterruptionLeavesNothing) {
    // As soon as there is something that could be left behind; after a minute without, the tool ends by itself and the test fails.
    const Outcome o = run_tool("synth --shape llama-8b --type q4_K -o '" + file() + "'",
                               "sh -c '\"$0\" \"$@\" & for i in $(seq 600); do ls \"" + folder.string() +
                                   "\" | grep -q part && break; sleep 0.1; done; kill -INT $!; wait $!'");
    EXPECT_EQ(o.exit_code, 130) << o.err;
    EXPECT_NE(error_line(o).find("interrupted"), std::string::npos);
    expect_empty_folder();
}

TEST_F(CliSynth, HelpSpellsOutTheShapes) {
    const Outcome o = run_tool("synth --help");
    EXPECT_NE(o.out.find("smollm2-135m  --layers 30 --embd 576 --heads 9 --kv-heads 3 --head-dim 64"), std::string::npos) << o.out;
}

TEST_F(CliSynth, SameSeedSameBytes) {
    for (const char* type : {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}) {
        const std::string options = std::string(kSmall) + " --type " + type;
        const std::string a       = read_text(synth(options + " --seed 7 -t 1", "a"));
        EXPECT_EQ(a, read_text(synth(options + " --seed 7 -t 3", "b"))) << type;
        const std::string other = read_text(synth(options + " --seed 8 -t 1", "c"));
        EXPECT_EQ(a.size(), other.size()) << type;
        EXPECT_NE(a, other) << type;
    }
}

// Random logits: the perplexity is that of guessing, a little worse, whatever the cache loses.
TEST_F(CliSynth, EveryKindOfModelRunsOnACompressedCache) {
    const std::string wide    = "--layers 2 --embd 256 --heads 4 --ff 256 --vocab 300 --ctx 128 ";
    const std::string kinds[] = {kSmall,
                                 std::string(kSmall) + " --experts 4 --experts-used 2",
                                 wide + "--kv-heads 2 --head-dim 128 --type q4_K",
                                 wide + "--kv-heads 2 --head-dim 128 --type q6_K --experts 3 --experts-used 3",
                                 wide + "--kv-heads 4 --head-dim 64 --type q2_K",
                                 wide + "--kv-heads 1 --head-dim 256 --type f16"};
    for (const std::string& options : kinds) {
        const std::string model = synth(options);
        const Outcome     o     = run_tool("eval --no-expand -m '" + model + "' --cache turbo4 --ctx 64 --chunks 1 --threads 1 -o json");
        ASSERT_EQ(o.exit_code, 0) << options << "\n" << o.err;
        const auto j = nlohmann::json::parse(o.out);
        EXPECT_EQ(j["adapter_active"], true);
        ASSERT_EQ(j["results"].size(), 4u);
        for (const auto& r : j["results"]) {
            ASSERT_TRUE(r["ppl"].is_number()) << options << r.dump();
            EXPECT_GT(r["ppl"], kVocab / 3.0) << options << r.dump();
            EXPECT_LT(r["ppl"], kVocab * 10.0) << options << r.dump();
        }
        EXPECT_GT(j["results"][1]["kld"], 0.0) << options; // logits depend on the cache
    }
}

// llama.cpp has caches of multiples of 256 cells: what bits and bytes are of is said where that is more than --ctx.
TEST_F(CliSynth, BitsAndBytesAreOfTheCellsThatThereAre) {
    const std::string model = synth("--layers 2 --embd 64 --heads 2 --kv-heads 1 --head-dim 96 --ff 128 --vocab 300 --ctx 256");
    const std::string eval  = "eval --no-expand -m '" + model + "' --cache turbo3:window=32 --chunks 2 --threads 1 --ctx ";
    const double      bits  = 8 * 38 / 96.0 + 16 * 35 / 256.0; // codes; window rows and three more, f16, shared out
    for (const int ctx : {64, 256}) {
        const Outcome o = run_tool(eval + std::to_string(ctx) + " -o json");
        ASSERT_EQ(o.exit_code, 0) << o.err;
        const auto j = nlohmann::json::parse(o.out);
        EXPECT_EQ(j["cells"], 256);
        ASSERT_EQ(j["results"].size(), 4u);
        for (const size_t i : {1u, 3u}) { // one sequence at a time, and two
            EXPECT_DOUBLE_EQ(j["results"][i]["bits_per_value"].get<double>(), bits);
            EXPECT_EQ(j["results"][i]["cache_bytes"], 2 * 2 * 256 * 96 * bits / 8);
        }
        const Outcome table = run_tool(eval + std::to_string(ctx));
        EXPECT_EQ(has(table.err, "tightkv: bits/value and bytes are of 256 cells: llama.cpp rounds --ctx 64 up"), ctx == 64) << table.err;
    }
}

TEST_F(CliSynth, AnyTextIsTokens) { // bytes that are no UTF-8, and all blanks
    const std::string model = synth(kSmall);
    std::string       text(200, ' ');
    for (int i = 0; i < 256; i++) text += static_cast<char>(i);
    { std::ofstream(file("text"), std::ios::binary) << text; }
    const Outcome o = run_tool("eval --no-expand -m '" + model + "' --text '" + file("text") +
                               "' --cache q8_0 --ctx 64 --chunks 6 --path batched --threads 1 -o json");
    EXPECT_EQ(o.exit_code, 0) << o.err;
}

} // namespace tightkv::tool::test
