// What the built program must not measure: a model our formats do not fit, a host the adapter is not active in, caches that do not
// reproduce themselves. One line says why, nothing is written to standard output, and the control beside it passes.
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "run_tool.h"
#include "tiny_model.h"

namespace fs = std::filesystem;

namespace tightkv::tool::test {

namespace {

class Refusal : public testing::Test {
protected:
    TempFolder        folder;
    const std::string model = folder.path("tiny.gguf");

    Outcome eval(const std::string& arguments, const std::string& before = "") const {
        return run_tool("eval --ctx 32 --chunks 1 -t 1 -o json -m '" + model + "' " + arguments, before);
    }
    static void expect_refusal(const Outcome& o, std::initializer_list<std::string> parts) { test::expect_refusal(o, 1, parts); }
    // Ran, and this is whether a cache of ours was computed by the adapter.
    static bool active(const Outcome& o) {
        EXPECT_EQ(o.exit_code, 0) << o.err;
        return o.exit_code == 0 && nlohmann::json::parse(o.out)["adapter_active"].get<bool>();
    }
};

// What `tightkv info` says about an adapter that it cannot use.
void expect_inactive(const std::string& arguments, const std::string& reason, const std::string& before = "") {
    const Outcome o = run_tool("info -o json " + arguments, before);
    ASSERT_EQ(o.exit_code, 0) << o.err;
    const auto host = nlohmann::json::parse(o.out)["host"];
    EXPECT_EQ(host["adapter_active"], false) << o.out;
    EXPECT_TRUE(has(host["handshake"], reason)) << host["handshake"] << " lacks " << reason;
    EXPECT_FALSE(has(o.err, "tightkv: active")) << o.err;
}

} // namespace

TEST_F(Refusal, HeadDimThatNoFormatHas) {
    for (const int n_embd : {256, 192}) { // head_dim by its key, and as 192 / 4
        write_tiny_model(model, {.head_dim = 48, .n_embd = n_embd});
        for (const char* cache : {"turbo4", "k=turbo4:v=f16"})
            expect_refusal(eval(std::string("--cache q4_0,f16,") + cache),
                           {"head_dim is 48", model, cache, "multiples of 32 from 32 to 1024"});
        EXPECT_FALSE(active(eval("--cache f16"))); // the model is good
    }
    for (const int head_dim : {32, 96}) {
        write_tiny_model(model, {.head_dim = head_dim});
        EXPECT_TRUE(active(eval("--cache turbo4"))) << head_dim;
    }
}

TEST_F(Refusal, AdapterThatIsNone) {
    write_tiny_model(model);
    const std::string text = folder.path("text.so"), nothing = folder.path("nothing.so");
    std::ofstream(text) << std::string(1000, 'x'); // longer than the header of a library
    struct Case {
        std::string file, reason;
    };
    for (const Case& c : {Case{nothing, "No such file"}, Case{folder.path(), "directory"}, Case{text, "invalid ELF header"},
                          Case{TIGHTKV_PRELOAD, "ggml_backend_init"}, Case{TIGHTKV_FOREIGN, "another backend, elsewhere"},
                          Case{TIGHTKV_OTHER_VERSION, "lacks functions of this version"}}) {
        SCOPED_TRACE(c.file);
        const std::string named = "--adapter '" + c.file + "' ";
        expect_refusal(eval(named + "--cache turbo4"), {c.file, c.reason});
        expect_refusal(eval(named + "--cache q8_0,turbo4"), {c.file, c.reason});
        expect_refusal(run_tool("demo --output '" + folder.path("demo.json") + "' -m '" + model + "' " + named), {c.file, c.reason});
        EXPECT_FALSE(fs::exists(folder.path("demo.json")));
        EXPECT_FALSE(active(eval(named + "--cache q8_0"))); // needs none
        expect_inactive(named, c.reason);
    }
    EXPECT_TRUE(active(eval("--adapter '" TIGHTKV_ADAPTER "' --cache turbo4")));
}

TEST_F(Refusal, RunStartsNothingWithoutAnAdapter) {
    const std::string text = folder.path("text.so");
    std::ofstream(text) << std::string(1000, 'x');
    expect_refusal(run_tool("run --cache turbo4 --adapter '" + text + "' -- echo started"),
                   {folder.path("libtightkv-preload.so")}); // is not there
    fs::copy_file(TIGHTKV_PRELOAD, folder.path("libtightkv-preload.so"));
    expect_refusal(run_tool("run --cache turbo4 --adapter '" + text + "' -- echo started"), {text, "invalid ELF header"});
    expect_refusal(run_tool("run --cache turbo4 --adapter '" TIGHTKV_PRELOAD "' -- echo started"), {TIGHTKV_PRELOAD, "is no adapter"});
}

TEST_F(Refusal, AdapterByItsBareName) {
    write_tiny_model(model);
    const fs::path adapter = TIGHTKV_ADAPTER;
    EXPECT_TRUE(active(eval("--cache turbo4 --adapter " + adapter.filename().string(), "cd '" + adapter.parent_path().string() + "' &&")));
}

#ifndef TIGHTKV_SANITIZED // a sanitised program wants its own runtime before anything preloaded

TEST_F(Refusal, HostThatTheAdapterRefuses) {
    write_tiny_model(model);
    const std::string other_host = "env LD_PRELOAD='" TIGHTKV_MEDDLER "' MEDDLE=ops";
    const Outcome     o          = eval("--cache turbo4", other_host);
    expect_refusal(o, {"libggml-tightkv.so", "not active", "ggml "});
    EXPECT_TRUE(has(o.err, "tightkv: inactive, the host runs stock: its operation codes differ (SET_ROWS)")) << o.err;
    EXPECT_FALSE(active(eval("--cache q8_0", other_host)));
    expect_inactive("", "ggml_backend_init", other_host);
    EXPECT_TRUE(active(eval("--cache turbo4", "env LD_PRELOAD='" TIGHTKV_MEDDLER "'"))); // the preloading alone changes nothing
}

TEST_F(Refusal, CacheThatDoesNotReproduceItself) {
    write_tiny_model(model);
    const std::string meddled = "env LD_PRELOAD='" TIGHTKV_MEDDLER "' MEDDLE=logits";
    for (const char* path : {"batched", "decode"})
        expect_refusal(eval(std::string("--cache q8_0 --path ") + path, meddled), {"refused to measure", path, "f16"});
}

#endif

} // namespace tightkv::tool::test
