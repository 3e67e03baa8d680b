// The installed program, moved away from where it was installed to: it finds its adapter, its text and the host's libraries.
#include <cstdlib>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "run_tool.h"
#include "tiny_model.h"

namespace fs = std::filesystem;

namespace tightkv::tool::test {

TEST(Installed, FindsWhatBelongsToIt) {
    const TempFolder  folder;
    const std::string first = folder.path("first"), prefix = folder.path("second"), model = folder.path("tiny.gguf");
    const Outcome     install = run_program(TIGHTKV_CMAKE, "--install '" TIGHTKV_BUILD "' --prefix '" + first + "'");
    ASSERT_EQ(install.exit_code, 0) << install.out << install.err;
    EXPECT_TRUE(has(install.out + install.err, "loads libllama and libggml from " TIGHTKV_TEST_GGML_DIR ";")) << install.out;
    fs::rename(first, prefix);
    const std::string tool = prefix + "/bin/tightkv";

    const Outcome info = run_program(tool, "info -o json");
    ASSERT_EQ(info.exit_code, 0) << info.err;
    const auto host = nlohmann::json::parse(info.out)["host"];
    EXPECT_EQ(host["adapter_active"], true) << info.out;
    EXPECT_TRUE(host["adapter"].get<std::string>().starts_with(prefix + "/")) << host["adapter"];
    EXPECT_FALSE(fs::equivalent(host["adapter"].get<std::string>(), TIGHTKV_ADAPTER));

    write_tiny_model(model);
    const Outcome eval = run_program(tool, "eval --cache turbo4 --ctx 32 --chunks 1 -t 1 -o json -m '" + model + "'");
    ASSERT_EQ(eval.exit_code, 0) << eval.err;
    const auto result = nlohmann::json::parse(eval.out);
    EXPECT_EQ(result["adapter_active"], true);
    EXPECT_EQ(result["text"], prefix + "/share/tightkv/demo.txt");

#ifndef TIGHTKV_SANITIZED // a sanitised library cannot be preloaded into a program that is not
    const Outcome run = run_program(tool, "run --cache turbo4 -- env", "env LD_PRELOAD=");
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_TRUE(has(run.out, "GGML_BACKEND_PATH=" + host["adapter"].get<std::string>() + "\n")) << run.out;
    const std::string preload = (fs::path(host["adapter"].get<std::string>()).parent_path() / "libtightkv-preload.so").string();
    EXPECT_TRUE(has(run.out, "LD_PRELOAD=" + preload + "\n")) << run.out;
#endif
}

} // namespace tightkv::tool::test
