// The built program: exit codes and messages, without a model.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <system_error>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cache/profile.h"
#include "run_tool.h"
#include "text.h"

namespace tightkv::tool::test {

Outcome run_tool(const std::string& arguments, const std::string& before) { return run_program(TIGHTKV_TOOL, arguments, before); }

Outcome run_program(const std::string& program, const std::string& arguments, const std::string& before) {
    const std::string err_file = testing::TempDir() + "/tightkv_err." + std::to_string(getpid());
    const std::string command  = before + " '" + program + "' " + arguments + " 2>'" + err_file + "' </dev/null";
    Outcome           o;
    FILE*             pipe = popen(command.c_str(), "r");
    if (!pipe) return o;
    char   buffer[4096];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, pipe)) > 0) o.out.append(buffer, n);
    const int status = pclose(pipe);
    o.exit_code      = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    std::stringstream err;
    err << std::ifstream(err_file).rdbuf();
    o.err = err.str();
    std::remove(err_file.c_str());
    return o;
}

std::string error_line(const Outcome& o) {
    std::istringstream in(o.err);
    std::string        line, found;
    int                count = 0;
    while (std::getline(in, line))
        if (line.starts_with("tightkv: ") && !line.starts_with("tightkv: active,") && !line.starts_with("tightkv: inactive,") &&
            !line.starts_with("tightkv: KV cache") && !line.starts_with("tightkv: ["))
            found = line, count++;
    EXPECT_EQ(count, 1) << o.err;
    return found;
}

TempFolder::TempFolder() {
    std::string name = testing::TempDir() + "/tightkv_XXXXXX";
    if (!::mkdtemp(name.data())) throw std::system_error(errno, std::generic_category(), name);
    folder_ = std::filesystem::canonical(name);
}
TempFolder::~TempFolder() {
    std::error_code ec;
    std::filesystem::remove_all(folder_, ec);
}

void expect_error(const std::string& arguments, int exit_code, std::initializer_list<const char*> parts) {
    SCOPED_TRACE(arguments);
    expect_refusal(run_tool(arguments), exit_code, {parts.begin(), parts.end()});
}

void expect_refusal(const Outcome& o, int exit_code, const std::vector<std::string>& parts) {
    EXPECT_EQ(o.exit_code, exit_code) << o.err;
    EXPECT_EQ(o.out, "");
    const std::string line = error_line(o);
    for (const std::string& p : parts) EXPECT_TRUE(has(line, p)) << "'" << line << "' lacks '" << p << "'";
}

namespace {

struct TempFile {
    std::string path = testing::TempDir() + "/tightkv_cli." + std::to_string(getpid());
    explicit TempFile(const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
    ~TempFile() { std::remove(path.c_str()); }
};

} // namespace

TEST(Cli, HelpBeginsWithAnExample) {
    for (const char* command : {"", "info", "run", "eval", "demo", "calibrate", "synth"}) {
        const Outcome o = run_tool(std::string(command) + " --help");
        EXPECT_EQ(o.exit_code, 0) << command;
        EXPECT_TRUE(o.out.starts_with("Example:\n  tightkv ")) << o.out;
        EXPECT_EQ(o.err, "");
    }
}

TEST(Cli, UsageOfRunNamesTheProgram) { EXPECT_TRUE(has(run_tool("run --help").out, "run [OPTIONS] -- PROGRAM [ARGUMENTS]")); }

TEST(Cli, Version) { EXPECT_EQ(run_tool("--version").exit_code, 0); }

TEST(Cli, UsageErrors) {
    expect_error("", 2, {"a subcommand is missing", "info, run, eval, demo, calibrate, synth, bench"});
    expect_error("bench", 2, {"a subcommand is missing", "attention, encode, model"});
    expect_error("bench attention --depth 0", 2, {"--depth '0'", "numbers from 1", "0 with --tokens of 2 or more"});
    expect_error("run --cache q8_0 -- true", 2, {"q8_0", "turbo4", "-ctk q8_0 -ctv q8_0"});
    expect_error("run --cache mean=256 -- true", 2, {"the format of k is missing", "turbo4"});
    expect_error("frobnicate", 2, {"frobnicate", "info, run, eval, demo, calibrate, synth"});
    expect_error("eval", 2, {"--cache", "tightkv eval --help"});
    expect_error("eval --cache turbo4 --ctx x", 2, {"ctx"});
    expect_error("eval --cache turbo4 --chunks 0", 2, {"chunks"});
    expect_error("eval --cache turbo4 --bogus", 2, {"bogus"});
    expect_error("eval --chace turbo4", 2, {"not expected: --chace turbo4; --cache is required"});
    expect_error("eval book.txt", 2, {"not expected: book.txt; --cache is required"});
    expect_error("eval --cache turbo9", 2, {"turbo9", "turbo2", "turbo4", "q8_0"});
    expect_error("eval --cache turbo4,", 2, {"empty"});
    expect_error("eval --cache turbo4 --path sideways", 2, {"sideways", "batched, decode"});
    expect_error("eval --cache turbo4 -o xml", 2, {"xml", "md, csv, json, jsonl"});
    expect_error("info --head-dim 64,48", 2, {"48", "32", "1024"});
    expect_error("info -o csv", 2, {"csv", "md, json"});
}

TEST(Cli, FilesThatAreNotThere) {
    expect_error("eval --cache q8_0 -m /nonexistent.gguf", 1, {"/nonexistent.gguf", "No such file"});
    const TempFile file("no model");
    expect_error("eval --cache q8_0 -m " + file.path, 1, {file.path.c_str()});
    expect_error("eval --cache q8_0 --no-expand -m " + file.path, 1, {file.path.c_str()});
    expect_error("eval --cache q8_0 --text /nonexistent.txt -m " + file.path, 1, {"/nonexistent.txt"});
    expect_error("eval --cache q8_0 --output /nonexistent/x -m " + file.path, 1, {"/nonexistent/x"});
    expect_error("eval --cache turbo4 --adapter /nonexistent.so -m " + file.path, 1, {"/nonexistent.so"});
    expect_error("demo -m /nonexistent.gguf", 1, {"/nonexistent.gguf"});
}

TEST(Cli, DefaultModelThatIsNotThere) {
    const Outcome o = run_tool("eval --cache q8_0", "env -u TIGHTKV_DEFAULT_MODEL TIGHTKV_CACHE=/nonexistent");
    EXPECT_EQ(o.exit_code, 1);
    EXPECT_TRUE(has(error_line(o), "./run model")) << o.err;
}

TEST(Cli, InfoAsJson) {
    const Outcome o = run_tool("info -o json --head-dim 64,576 --selftest");
    ASSERT_EQ(o.exit_code, 0) << o.err;
    const auto j = nlohmann::json::parse(o.out);
    EXPECT_TRUE(j["host"]["adapter_active"]) << o.out;
    EXPECT_EQ(j["host"]["adapter_version"], j["version"]) << "of one build";
    EXPECT_TRUE(j["selftest"]["ok"]);
    EXPECT_EQ(j["isa_levels"][0], "scalar");
    for (const auto& f : j["formats"])
        if (f["format"] == "turbo3" && f["head_dim"] == 64) {
            EXPECT_EQ(f["row_bytes"], 26); // 64 * 3 / 8 + 2
        }
    const std::string text = run_tool("info").out;
    EXPECT_TRUE(has(text, "handshake: ggml ")) << text;
    EXPECT_TRUE(has(text, "libggml-tightkv.so, version " + j["version"].get<std::string>() + "\n")) << text;
    const Outcome none = run_tool("info -o json --adapter /nonexistent.so");
    EXPECT_TRUE(nlohmann::json::parse(none.out)["host"]["adapter_version"].is_null()) << none.out;
}

TEST(Cli, InfoListsTheCacheFolder) {
    const TempFolder folder;
    for (const char* d : {"models", "hosts/api2/src", "ccache/0"}) std::filesystem::create_directories(folder.path(d));
    const auto write = [&](const char* name, size_t n) { std::ofstream(folder.path(name)) << std::string(n, 'x'); };
    write("models/a.gguf", 1000), write("models/a.F32.gguf", 8000), write("models/a.F32.gguf.lock", 0);
    write("models/a.F32.gguf.from", 60), write("models/b.F32.gguf.part", 50), write("models/b.tkv", 40);
    write("hosts/api2/src/a.c", 300), write("hosts/api2/b", 30), write("ccache/0/x", 5);
    Profile profile{.architecture = "llama", .made_from = "book.txt, 99 tokens", .layers = {}};
    profile.layers.push_back(
        {.head_dim_k = 64, .head_dim_v = 64, .k_format = {}, .v_format = {}, .k = {HeadProfile{}}, .v = {HeadProfile{}}});
    ASSERT_TRUE(profile.save(folder.path("models/a.tkv")).ok());
    const std::string profile_bytes = std::to_string(std::filesystem::file_size(folder.path("models/a.tkv")));
    std::filesystem::create_symlink(folder.path("models/a.gguf"), folder.path("hosts/api2/link")); // counts once, as the file

    const auto  in      = [](const std::string& cache) { return "env TIGHTKV_CACHE='" + cache + "'"; };
    const auto  entries = nlohmann::json::parse(run_tool("info -o json", in(folder.path())).out)["cache"]["entries"];
    std::string found;
    for (const auto& e : entries) found += e["name"].get<std::string>() + " " + std::to_string(e["bytes"].get<int>()) + "\n";
    EXPECT_EQ(found, "models/a.F32.gguf 8000\nmodels/a.gguf 1000\nhosts/api2 330\nmodels/a.tkv " + profile_bytes +
                         "\nmodels/a.F32.gguf.from 60\nmodels/b.F32.gguf.part 50\nmodels/b.tkv 40\nccache 5\n");
    for (const auto& e : entries) EXPECT_NE(e["what"], "") << e;
    const Outcome text = run_tool("info", in(folder.path()));
    for (const std::string& part : {std::string("models/a.F32.gguf"), std::string("may be deleted"), std::string("8000 bytes"),
                                    profile.fingerprint(), profile.made_from, std::string("models/b.tkv: this is no tightkv profile")})
        EXPECT_TRUE(has(text.out, part)) << text.out;

    EXPECT_TRUE(has(run_tool("info", in("/nonexistent")).out, "cache folder: /nonexistent (nothing in it)"));
    const Outcome homeless = run_tool("info", "env -u HOME -u TIGHTKV_CACHE");
    EXPECT_EQ(homeless.exit_code, 0) << homeless.err;
    EXPECT_TRUE(has(homeless.out, "cache folder: none")) << homeless.out;
}

TEST(Cli, RunRefusesAndReportsLikeAShell) {
    expect_error("run --cache turbo9 -- true", 2, {"turbo9", "turbo2"});
    expect_error("run -- true", 2, {"--cache"});
    expect_error("run --cache turbo4", 2, {"--"});
    for (const char* options :
         {"--cache turbo4", "--cache=turbo4 --stats", "--stats --adapter x.so"}) // none of the program's words is ours
        expect_error(std::string("run ") + options + " llama-bench -m x.gguf --help", 2, {"'--' is missing", "-- llama-bench"});
    expect_error("run --cache turbo4 --bogus", 2, {"--bogus"});
    expect_error("run --cache turbo4 -- /nonexistent/program", 127, {"/nonexistent/program"});
    expect_error("run --cache turbo4 --adapter /nonexistent.so -- true", 1, {"/nonexistent.so"});
}

#ifndef TIGHTKV_SANITIZED // a sanitised library cannot be preloaded into a program that is not
TEST(Cli, RunSetsUpTheProgram) {
    const Outcome o = run_tool("run --cache k=turbo4:v=turbo3 --stats -- sh -c 'env; exit 7' --cache [x] --", "env LD_PRELOAD=");
    EXPECT_EQ(o.exit_code, 7) << o.err;
    EXPECT_TRUE(has(o.out, "TIGHTKV=k=turbo4:v=turbo3\n"));
    EXPECT_TRUE(has(o.out, "TIGHTKV_STATS=1\n"));
    EXPECT_TRUE(has(o.out, "libggml-tightkv.so\n"));
    EXPECT_TRUE(has(o.out, "libtightkv-preload.so\n"));
    EXPECT_EQ(run_tool("run --cache turbo4 -- printf %s:%s '[a,b]' --help").out, "[a,b]:--help");
}
#endif

} // namespace tightkv::tool::test
