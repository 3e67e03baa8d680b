// tightkv eval with methods of the lab: the control agrees with the cache that it stands for, and what cannot be measured is refused.
#include <cmath>
#include <fstream>
#include <random>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "run_tool.h"
#include "tiny_model.h"

namespace tightkv::tool::test {

namespace {

class CliLab : public testing::Test {
protected:
    TempFolder        folder;
    const std::string model = folder.path("tiny.gguf"), text = folder.path("text.txt");

    CliLab() {
        std::mt19937                       random(5);
        std::uniform_int_distribution<int> letter('a', 'z');
        std::ofstream                      out(text);
        for (int i = 0; i < 4000; i++) out << static_cast<char>(letter(random));
    }
    Outcome eval(const std::string& arguments) const { return run_tool("eval -t 1 -o json -m '" + model + "' " + arguments); }
};

} // namespace

// The same codes, once in the adapter's kernels and once as f16 rows put into the host's cache: what the lab measures is the method.
TEST_F(CliLab, TheControlAgreesWithTheAdapter) {
    write_tiny_model(model);
    const Outcome o = eval("--text '" + text + "' --ctx 128 --chunks 8 --cache turbo3,lab:turbo3,lab:turbo2");
    ASSERT_EQ(o.exit_code, 0) << o.err;
    const auto results = nlohmann::json::parse(o.out)["results"];
    ASSERT_EQ(results.size(), 8u);
    for (const size_t path : {size_t{0}, size_t{4}}) {
        const auto &turbo3 = results[path + 1], &control = results[path + 2], &other = results[path + 3];
        EXPECT_EQ(control["cache"], "lab:turbo3");
        EXPECT_EQ(control["bits_per_value"], turbo3["bits_per_value"]);
        EXPECT_GT(double(turbo3["kld"]), 0);
        EXPECT_LT(std::abs(double(control["dkld"])), 4 * double(control["dkld_se"])) << control.dump();
        EXPECT_GT(double(other["dkld"]), 4 * double(other["dkld_se"])) << other.dump(); // the bound has power
    }
    // Row by row or in batches: one method.
    EXPECT_NEAR(double(results[2]["kld"]) / double(results[6]["kld"]), 1, 0.1);
}

TEST_F(CliLab, FittedMethodsSeeTheProjectsText) {
    write_tiny_model(model);
    const Outcome o = eval("--text '" + text + "' --ctx 128 --chunks 2 --cache lab:cat3,lab:kivi2 --adapter /nonexistent.so");
    ASSERT_EQ(o.exit_code, 0) << o.err; // and need no adapter
    const auto j = nlohmann::json::parse(o.out);
    EXPECT_TRUE(has(j["lab_text"], "calibration.txt"));
    EXPECT_EQ(j["adapter_active"], false);
    EXPECT_NEAR(double(j["results"][2]["bits_per_value"]), 3 + (15.5 + 32) / 2 * 13 / 128, 1e-9);
    const Outcome plain = eval("--ctx 128 --chunks 2 --cache lab:kivi2"); // nothing to fit: any text will do
    ASSERT_EQ(plain.exit_code, 0) << plain.err;
    EXPECT_FALSE(nlohmann::json::parse(plain.out).contains("lab_text"));
    const Outcome same = eval("--text '" TIGHTKV_CALIBRATION_TEXT "' --ctx 128 --chunks 2 --cache lab:kivi2,lab:squat2");
    expect_refusal(same, 2, {"lab:squat2", "calibration.txt", "--text"});
}

TEST_F(CliLab, Refusals) {
    expect_error("eval -m none.gguf --cache lab:cat9", 2, {"lab:cat9", "cat3", "squatv2", "outlier2.5"});
    expect_error("bench model -m none.gguf --cache lab:cat3", 2, {"lab:cat3", "tightkv eval"});
    write_tiny_model(model, {.head_dim = 48});
    Outcome o = eval("--text '" + text + "' --ctx 32 --chunks 1 --cache lab:turbo3");
    EXPECT_EQ(o.exit_code, 1);
    for (const char* part : {"lab:turbo3", "head_dim is 48", "multiples of 32"}) EXPECT_TRUE(has(error_line(o), part)) << o.err;
    write_tiny_model(model, {.head_dim = 96});
    o = eval("--text '" + text + "' --ctx 32 --chunks 1 --cache lab:outlier2.5");
    EXPECT_EQ(o.exit_code, 1);
    for (const char* part : {"lab:outlier2.5", "head_dim 96", "multiples of 64"}) EXPECT_TRUE(has(error_line(o), part)) << o.err;
}

} // namespace tightkv::tool::test
