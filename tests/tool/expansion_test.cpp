// The F32 expansion of a quantised model that eval makes and keeps.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>

#include <sys/stat.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "run_tool.h"
#include "tiny_model.h"

namespace fs = std::filesystem;

namespace tightkv::tool::test {

namespace {

using Tensors = std::map<std::string, TensorInFile>;

// The same names, shapes and values, all in f32.
void expect_expansion(const Tensors& of, const Tensors& expanded) {
    ASSERT_EQ(expanded.size(), of.size());
    ASSERT_FALSE(of.empty());
    for (const auto& [name, t] : of) {
        ASSERT_TRUE(expanded.contains(name)) << name;
        const TensorInFile& e = expanded.at(name);
        EXPECT_EQ(e.type, "f32") << name;
        EXPECT_EQ(e.shape, t.shape) << name;
        ASSERT_EQ(e.values.size(), t.values.size()) << name;
        EXPECT_EQ(std::memcmp(e.values.data(), t.values.data(), t.values.size() * sizeof(float)), 0) << name;
    }
}

class Expansion : public testing::Test {
protected:
    TempFolder        folder;
    const std::string model = folder.path("tiny.gguf"), cache = folder.path("cache"), made = folder.path("cache/models/tiny.F32.gguf");

    Outcome eval(const std::string& file, const std::string& before = "") const {
        return run_tool("eval --cache f16 --path batched --ctx 32 --chunks 1 -t 1 -o json -m '" + file + "'",
                        before + " env TIGHTKV_CACHE='" + cache + "'");
    }
    Outcome eval() const { return eval(model); }
    // True if it was made by this run, and not there before.
    bool expanded(const Outcome& o) const {
        EXPECT_EQ(o.exit_code, 0) << o.err;
        if (o.exit_code != 0) return false;
        const auto j = nlohmann::json::parse(o.out);
        EXPECT_EQ(j["weights"], made);
        return has(o.err, "tightkv: expanding ");
    }
    static std::string bytes(const std::string& file) {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    static void write(const std::string& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }
};

} // namespace

TEST_F(Expansion, HoldsTheDequantisedTensors) {
    write_tiny_model(model, {.mixed = true});
    const Tensors source = read_tensors(model);
    EXPECT_EQ(source.at("blk.0.attn_q.weight").type, "q4_0"); // the model is what this test needs
    EXPECT_TRUE(expanded(eval()));
    expect_expansion(source, read_tensors(made));
    std::vector<std::string> left;
    for (const auto& entry : fs::directory_iterator(fs::path(made).parent_path())) left.push_back(entry.path().filename());
    std::sort(left.begin(), left.end());
    EXPECT_EQ(left, (std::vector<std::string>{"tiny.F32.gguf", "tiny.F32.gguf.from", "tiny.F32.gguf.lock"}));
}

TEST_F(Expansion, IsUsedAgain) {
    write_tiny_model(model, {.mixed = true});
    EXPECT_TRUE(expanded(eval()));
    struct stat first = {}, second = {};
    ASSERT_EQ(::stat(made.c_str(), &first), 0);
    EXPECT_FALSE(expanded(eval()));
    ASSERT_EQ(::stat(made.c_str(), &second), 0);
    EXPECT_EQ(first.st_ino, second.st_ino);
    EXPECT_EQ(first.st_mtim.tv_sec, second.st_mtim.tv_sec);
    EXPECT_EQ(first.st_mtim.tv_nsec, second.st_mtim.tv_nsec);
}

TEST_F(Expansion, WithoutQuantisedWeightsThereIsNone) {
    write_tiny_model(model);
    const Outcome o = eval();
    ASSERT_EQ(o.exit_code, 0) << o.err;
    EXPECT_EQ(nlohmann::json::parse(o.out)["weights"], model);
    EXPECT_FALSE(fs::exists(made));
}

TEST_F(Expansion, WhatIsBrokenIsReplaced) {
    write_tiny_model(model, {.mixed = true});
    const Tensors source = read_tensors(model);
    ASSERT_TRUE(expanded(eval()));
    const std::string whole = bytes(made);
    struct Damage {
        const char*           what;
        std::function<void()> how;
    };
    for (const Damage& d :
         {Damage{"gone", [&] { fs::remove(made); }}, Damage{"empty", [&] { write(made, ""); }},
          Damage{"truncated", [&] { fs::resize_file(made, whole.size() / 2); }},
          Damage{"a byte short", [&] { fs::resize_file(made, whole.size() - 1); }},
          Damage{"overwritten", [&] { write(made, std::string(whole.size(), 'x')); }},
          Damage{"interrupted before its note", [&] { fs::remove(made + ".from"); }},
          Damage{"note cut short", [&] { write(made + ".from", bytes(made + ".from").substr(0, 20)); }},
          Damage{"interrupted while it was written", [&] { fs::remove(made), write(made + ".part", whole.substr(0, 999)); }}}) {
        SCOPED_TRACE(d.what);
        d.how();
        EXPECT_TRUE(expanded(eval()));
        expect_expansion(source, read_tensors(made));
        EXPECT_FALSE(fs::exists(made + ".part"));
        EXPECT_FALSE(expanded(eval()));
    }
}

TEST_F(Expansion, AnotherModelOfTheSameName) {
    write_tiny_model(model, {.mixed = true, .seed = 1});
    ASSERT_TRUE(expanded(eval()));
    write_tiny_model(model, {.mixed = true, .seed = 2}); // replaced
    EXPECT_TRUE(expanded(eval()));
    expect_expansion(read_tensors(model), read_tensors(made));
    fs::create_directory(folder.path("other"));
    const std::string other = folder.path("other/tiny.gguf"); // elsewhere
    write_tiny_model(other, {.mixed = true, .seed = 3});
    EXPECT_TRUE(expanded(eval(other)));
    expect_expansion(read_tensors(other), read_tensors(made));
}

TEST_F(Expansion, CacheFolderThatCannotBeWritten) {
    write_tiny_model(model, {.mixed = true});
    write(cache, "a file where the folder should be");
    const Outcome o = eval();
    EXPECT_EQ(o.exit_code, 1) << o.err;
    EXPECT_EQ(o.out, "");
    const std::string line = error_line(o);
    for (const std::string& part : {cache, std::string("Not a directory"), std::string("--no-expand")})
        EXPECT_TRUE(has(line, part)) << line;
    EXPECT_EQ(run_tool("eval --no-expand --cache f16 --path batched --ctx 32 --chunks 1 -t 1 -m '" + model + "'",
                       "env TIGHTKV_CACHE='" + cache + "'")
                  .exit_code,
              0); // the line is right
}

TEST_F(Expansion, FullDisk) {
    write_tiny_model(model, {.mixed = true});
    // A limit on the size of files, 64 blocks of 512 bytes, far below the expansion; ignored, the signal becomes an error of the write.
    const Outcome o = eval(model, "trap '' XFSZ; ulimit -f 64;");
    EXPECT_EQ(o.exit_code, 1) << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_TRUE(has(o.err, "cannot expand " + model)) << o.err;
    EXPECT_TRUE(has(o.err, "--no-expand")) << o.err;
    EXPECT_FALSE(fs::exists(made));
    EXPECT_FALSE(fs::exists(made + ".part"));
    EXPECT_TRUE(expanded(eval())); // there is room again
}

} // namespace tightkv::tool::test
