// tightkv bench as a built program: options it refuses, and the fields of its results.
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "bench/own_kernels.h"
#include "run_tool.h"
#include "tiny_model.h"

namespace tightkv::tool::test {

namespace {

void expect_usage(const std::string& arguments, std::initializer_list<const char*> parts) { expect_error("bench " + arguments, 2, parts); }

constexpr const char* kTiny = "bench attention --depth 256 --head-dim 64 --q-heads 4 --kv-heads 2 --rounds 2 --memory 64 ";

nlohmann::json results(const Outcome& o) {
    EXPECT_EQ(o.exit_code, 0) << o.err;
    return nlohmann::json::parse(o.out);
}

} // namespace

TEST(CliBench, UsageErrors) {
    expect_usage("", {"subcommand"});
    expect_usage("frobnicate", {"frobnicate", "attention, encode, model"});
    expect_usage("attention --format turbo9", {"turbo9", "turbo2", "turbo4", "f16"});
    expect_usage("attention --depth 0", {"--depth '0'", "from 1 to"});
    expect_usage("attention --depth 256,x", {"--depth 'x'", "numbers from"});
    expect_usage("attention --depth 99999999", {"99999999", "from 1 to"});
    expect_usage("attention --depth 256,", {"--depth ''"});
    expect_usage("attention --head-dim 100", {"100", "multiples of 32 from 32 to 1024"});
    expect_usage("attention --head-dim 2048", {"2048", "multiples of 32"});
    expect_usage("attention --q-heads 0", {"--q-heads", "1 to 1024"});
    expect_usage("attention --kv-heads -1", {"--kv-heads", "1 to 1024"});
    expect_usage("attention --q-heads 10 --kv-heads 4", {"--q-heads 10", "multiples of --kv-heads 4"});
    expect_usage("attention --threads 0", {"--threads", "1 to 1024"});
    expect_usage("attention --tokens 0", {"--tokens"});
    expect_usage("attention --rounds 0", {"--rounds"});
    expect_usage("attention --memory 0", {"--memory", "1 to 1048576"});
    expect_usage("attention --isa mmx", {"mmx", "scalar"});
    expect_usage("attention --against llama:f16,foo", {"foo", "llama:f16", "llama:q4_0"});
    expect_usage("attention --against ik:f16", {"ik:f16", "llama:f16"});
    expect_usage("attention --rival ik", {"ik", "NAME=FOLDER"});
    expect_usage("attention --rival ik=/nonexistent", {"/nonexistent", "libggml.so"});
    expect_usage("attention -o xml", {"xml", "md, csv, json, jsonl"});
    expect_usage("encode --format f16", {"f16", "turbo2", "turbo8"});
    expect_usage("encode --head-dim 64,48", {"48", "multiples of 32"});
    expect_usage("encode --isa mmx", {"mmx", "scalar"});
    expect_usage("model --cache turbo9", {"turbo9", "turbo4", "q8_0"});
    expect_usage("model --depth 100", {"--depth '100'", "multiples of 512 from 0 to"});
    expect_usage("model --depth 999999", {"999999", "from 0 to"});
    expect_usage("model -p 0", {"-p", "1 to"});
    expect_usage("model -n x", {"-n"});
    expect_usage("model -t 0", {"threads", "1 to 1024"});
    expect_usage("model --rival ik", {"ik", "NAME=FOLDER", "libllama.so"});
    expect_usage("model --rival ik=/nonexistent", {"/nonexistent", "libllama.so"});
    expect_usage("model --cache f16,ik:q8_0", {"ik:q8_0", "turbo4"});
    expect_usage("model -o xml", {"xml", "md, csv, json, jsonl"});
}

TEST(CliBench, SaysHowFarItIsWithoutATerminal) {
    // A round takes at least three times a fiftieth of a second: 50 of them are beyond ProgressLines::kQuiet.
    const Outcome o = run_tool("bench encode --format turbo4 --head-dim 64 --rounds 50");
    EXPECT_EQ(o.exit_code, 0) << o.err;
    EXPECT_TRUE(has(o.err, " %] turbo4, ")) << o.err;
    EXPECT_FALSE(has(o.err, "\x1b") || has(o.err, "\r")) << o.err;
    EXPECT_FALSE(has(o.out, "%]")) << o.out;
}

TEST(CliBench, MoreThanMemoryIsRefused) {
    const Outcome o = run_tool("bench attention --depth 4194304 --kv-heads 1024 --q-heads 1024 --head-dim 1024 --against llama:f16");
    EXPECT_EQ(o.exit_code, 1);
    EXPECT_TRUE(has(error_line(o), "GiB")) << o.err;
}

TEST(CliBench, HelpBeginsWithAnExample) {
    for (const char* command : {"bench", "bench attention", "bench encode", "bench model"}) {
        const Outcome o = run_tool(std::string(command) + " --help");
        EXPECT_EQ(o.exit_code, 0) << command;
        EXPECT_TRUE(o.out.starts_with("Example:\n  tightkv bench ")) << o.out;
        EXPECT_FALSE(has(o.out, "attention-rival"));
    }
}

TEST(CliBench, AttentionReportsEveryField) {
    const bool        own     = bench::own_kernels_available();
    const std::string against = std::string("llama:f16,llama:q8_0,llama:q4_0") + (own ? ",own:f16,own:f32" : "");
    const auto        j       = results(run_tool(kTiny + ("--format turbo4,turbo2 -o json --against " + against)));
    for (const char* key : {"cpu", "compiler", "host_version", "huge_pages", "bandwidth_gb_per_s", "last_cache_mib", "threads", "rounds"})
        EXPECT_TRUE(j.contains(key)) << key;
    const bool from_memory = 4 * double(j["last_cache_mib"]) <= 64; // else bandwidth would be a cache's
    EXPECT_EQ(j["bandwidth_gb_per_s"].is_number(), from_memory);
    ASSERT_EQ(j["results"].size(), 2u);
    for (const auto& r : j["results"]) {
        EXPECT_EQ(r["depth"], 256);
        EXPECT_EQ(r["tokens"], 1);
        EXPECT_EQ(r["threads"], 1);
        EXPECT_GT(r["ns_per_token"], 0);
        EXPECT_GE(r["spread"], 0);
        EXPECT_GT(r["gb_per_s"], 0);
        EXPECT_EQ(r["bandwidth_fraction"].is_number(), from_memory);
        EXPECT_GT(r["max_rel_error"], 0);
        EXPECT_LT(r["max_rel_error"], r["error_bound"]);
        EXPECT_GT(r["checked_rows"], 0);
        EXPECT_EQ(r["ratio"].size(), own ? 5u : 3u);
        for (const auto& [rival, ratio] : r["ratio"].items()) {
            EXPECT_GT(ratio, 0) << rival;
            EXPECT_NEAR(double(r["rivals"][rival]["ns_per_token"]) / double(r["ns_per_token"]), double(ratio), 1e-9) << rival;
            EXPECT_LT(r["rivals"][rival]["max_rel_error"], 0.1) << rival;
        }
        EXPECT_GT(double(r["cache_mib"]), 0);
        EXPECT_LT(double(r["cache_mib"]), 64 + 1); // as was asked for, or as there is
    }
    EXPECT_EQ(j["results"][0]["format"], "turbo4");
    EXPECT_EQ(j["results"][1]["format"], "turbo2");
}

TEST(CliBench, AttentionOfManyTokensOnAGivenLevel) {
    const auto j =
        results(run_tool(kTiny + std::string("--format turbo3 --tokens 20 --threads 2 --isa scalar --against llama:q8_0 -o json")));
    ASSERT_EQ(j["results"].size(), 1u);
    EXPECT_EQ(j["results"][0]["isa"], "scalar");
    EXPECT_EQ(j["results"][0]["tokens"], 20);
    EXPECT_EQ(j["results"][0]["n_kv"], 276);
}

TEST(CliBench, BandwidthIsThatOfMemory) {
    const auto j = results(
        run_tool("bench attention --depth 256 --head-dim 64 --q-heads 2 --kv-heads 2 --rounds 1 --format turbo4 --against none -o json"));
    EXPECT_GT(j["bandwidth_gb_per_s"], 0);
    EXPECT_NEAR(double(j["results"][0]["bandwidth_fraction"]), double(j["results"][0]["gb_per_s"]) / double(j["bandwidth_gb_per_s"]), 1e-9);
}

TEST(CliBench, AttentionAsCsvHasAColumnPerRival) {
    const Outcome o = run_tool(kTiny + std::string("--format turbo3 --against llama:q8_0 -o csv"));
    ASSERT_EQ(o.exit_code, 0) << o.err;
    EXPECT_TRUE(o.out.starts_with("format,depth,tokens,threads,isa,ns_per_token,spread,")) << o.out;
    EXPECT_TRUE(has(o.out, "ratio.llama:q8_0")) << o.out;
}

#ifndef TIGHTKV_SANITIZED // their runtimes refuse RTLD_DEEPBIND
TEST(CliBench, AnotherLibraryInItsOwnProcess) {
    const auto j = results(
        run_tool(kTiny + std::string("--format turbo4 --rival other='" TIGHTKV_TEST_GGML_DIR "' --against other:q8_0,other:f16 -o json")));
    EXPECT_GT(j["results"][0]["ratio"]["other:q8_0"], 0);
    EXPECT_LT(j["results"][0]["rivals"]["other:q8_0"]["max_rel_error"], 0.1);
}

// Forks want a round number of keys: those that make it up must change nothing.
TEST(CliBench, AnotherLibraryWithAnyNumberOfKeys) {
    const auto j =
        results(run_tool("bench attention --depth 1,300 --head-dim 64 --q-heads 4 --kv-heads 2 --rounds 1 --memory 64 --format turbo4 "
                         "--rival other='" TIGHTKV_TEST_GGML_DIR "' --against other:f16,llama:f16 -o json"));
    ASSERT_EQ(j["results"].size(), 2u);
    for (const auto& r : j["results"])
        EXPECT_NEAR(r["rivals"]["other:f16"]["max_rel_error"], double(r["rivals"]["llama:f16"]["max_rel_error"]), 1e-3) << r["depth"];
}

TEST(CliBench, ALibraryThatAborts) {
    expect_error(kTiny + std::string("--rival bad='" TIGHTKV_ABORTING_GGML_DIR "' --against bad:f16"), 1,
                 {"the process of bad:f16 has ended (Aborted)", "a line on stdout"});
}

// llama.cpp's own library is no ik_llama.cpp: its parameters begin otherwise.
TEST(CliBench, ModelRivalThatIsAnother) {
    const std::string rival = " --rival ik='" TIGHTKV_TEST_GGML_DIR "' ";
    expect_usage("model" + rival, {"ik", "nothing to do", "ik:q8_0"});
    expect_usage("model" + rival + "--cache f16,ik:turbo4", {"ik:turbo4", "ik:f16", "ik:q4_0"});
    expect_usage("model" + rival + "--cache ik:f16", {"rivals alone"});
    const TempFolder  folder;
    const std::string model = folder.path("tiny.gguf");
    write_tiny_model(model, {});
    expect_error("bench model --depth 0 -p 8 -n 1 -r 1 --cache f16,ik:f16 -m '" + model + "'" + rival, 1, {"libllama.so", "ik_llama.cpp"});
}

TEST(CliBench, ModelRivalIsChecked) {
    const TempFolder  folder;
    const std::string model = folder.path("tiny.gguf");
    write_tiny_model(model, {});
    const std::string bench = "bench model --depth 0 -p 8 -n 1 -r 1 -t 1 -m '" + model + "' --rival ik='" TIGHTKV_FAKE_IK_DIR "' --cache ";
    expect_error(bench + "f16,ik:q8_0", 1, {"ik:q8_0", "does not confirm", "type q8_0"});
    expect_error(bench + "turbo4,ik:f16", 1, {"ik:f16 computes something else", "cache 'turbo4'"});
}

TEST(CliBench, ALibraryThatIsNone) {
    const TempFolder folder;
    std::ofstream(folder.path("libggml.so")) << "no library";
    expect_error(kTiny + std::string("--rival bad='") + folder.path() + "' --against bad:f16", 1, {"cannot load", "libggml.so"});
}
#endif

TEST(CliBench, EncodeReportsEveryField) {
    const auto j = results(run_tool("bench encode --format turbo4,turbo8 --head-dim 64 --rounds 2 -o json"));
    EXPECT_TRUE(j.contains("cpu"));
    ASSERT_EQ(j["results"].size(), 2u);
    for (const auto& r : j["results"]) {
        EXPECT_EQ(r["exact"], true);
        EXPECT_EQ(r["head_dim"], 64);
        EXPECT_NEAR(double(r["gb_per_s"]) * 1e9, double(r["rows_per_s"]) * 64 * 4, 1e3);
        for (const char* key : {"isa", "spread", "write_k_gb_per_s", "write_v_gb_per_s"}) EXPECT_TRUE(r.contains(key)) << key;
    }
}

TEST(CliBench, ModelReportsEveryField) {
    if (!std::ifstream(TIGHTKV_TEST_MODEL).good()) GTEST_SKIP() << "no model: -DTIGHTKV_TEST_MODEL=FILE";
    const auto j = results(run_tool("bench model -m '" TIGHTKV_TEST_MODEL "' --cache f16,turbo4 --depth 0,512 -p 24 -n 2 -r 1 -o json"));
    for (const char* key : {"cpu", "compiler", "host_version", "model", "isa", "threads", "rounds", "prefill_tokens", "decode_tokens"})
        EXPECT_TRUE(j.contains(key)) << key;
    ASSERT_EQ(j["results"].size(), 4u);
    for (const auto& r : j["results"]) {
        EXPECT_GT(r["prefill_tps"], 0);
        EXPECT_GT(r["decode_tps"], 0);
        for (const char* key : {"prefill_spread", "decode_spread", "bits_per_value", "cache_bytes", "cells"})
            EXPECT_TRUE(r.contains(key)) << key;
        const auto& first = j["results"][r["depth"] == 0 ? 0 : 2]; // one round: its ratio is that of the two rates
        for (const std::string kind : {"decode", "prefill"}) {
            const double ratio = r[kind + "_tps"].get<double>() / first[kind + "_tps"].get<double>();
            EXPECT_DOUBLE_EQ(r[kind + "_ratio"], ratio);
            EXPECT_EQ(r[kind + "_ratio_low"], r[kind + "_ratio"]);
            EXPECT_EQ(r[kind + "_ratio_high"], r[kind + "_ratio"]);
        }
    }
    EXPECT_EQ(j["results"][0]["cache"], "f16");
    EXPECT_EQ(j["results"][0]["depth"], 0);
    EXPECT_EQ(j["results"][3]["cache"], "turbo4");
    EXPECT_EQ(j["results"][3]["depth"], 512);
}

} // namespace tightkv::tool::test
