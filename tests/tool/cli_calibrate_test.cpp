// tightkv calibrate and what uses its profiles, on tiny models: seeds make other models, head_dim leaves the norms as they are.
#include <cmath>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cache/profile.h"
#include "run_tool.h"
#include "tiny_model.h"

namespace fs = std::filesystem;

namespace tightkv::tool::test {

namespace {

class CliCalibrate : public testing::Test {
protected:
    TempFolder        folder;
    const std::string model = folder.path("tiny.gguf"), file = folder.path("tiny.tkv");

    void    SetUp() override { write_tiny_model(model); }
    Outcome calibrate(const std::string& arguments) const {
        return run_tool("calibrate --tokens 1024 -t 1 -m '" + model + "' -o '" + file + "' " + arguments);
    }
    Outcome eval(const std::string& on, const std::string& profile) const {
        return run_tool("eval --ctx 32 --chunks 1 -t 1 -o json -m '" + on + "' --cache 'turbo3:profile=" + profile + "'");
    }
    Profile loaded() const {
        Profile      p;
        const Status s = Profile::load(file, p);
        EXPECT_TRUE(s.ok()) << s.message();
        return p;
    }
};

} // namespace

TEST_F(CliCalibrate, AChunkIsTheLeastThatIsCalibratedFor) {
    const Outcome made = calibrate("--target-ctx 100");
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_TRUE(has(made.err, "--target-ctx 100: calibrated for 512 positions")) << made.err;
    EXPECT_TRUE(has(loaded().made_from, "for positions up to 512")) << loaded().made_from;
}

TEST_F(CliCalibrate, ProfileIsMadeShownAndUsed) {
    const Outcome made = calibrate("");
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const Profile p = loaded();
    ASSERT_EQ(p.layers.size(), 1u);
    EXPECT_EQ(p.architecture, "llama");
    EXPECT_TRUE(p.made_from.starts_with("calibration.txt (")) << p.made_from;
    EXPECT_TRUE(has(p.made_from, "), 1024 tokens in chunks of 512, weighed by attention, for positions up to 1024")) << p.made_from;
    EXPECT_NE(p.layers[0].norm, 0u);
    EXPECT_EQ(p.layers[0].k.size(), 2u);

    const Outcome shown = run_tool("info '" + file + "'");
    EXPECT_EQ(shown.exit_code, 0) << shown.err;
    for (const std::string& part : {p.fingerprint(), p.made_from}) {
        EXPECT_TRUE(has(shown.out, part)) << shown.out;
        EXPECT_TRUE(has(made.out, part)) << made.out;
    }
    EXPECT_EQ(nlohmann::json::parse(run_tool("info -o json '" + file + "'").out)["fingerprint"], p.fingerprint());

    const Outcome used = eval(model, file);
    ASSERT_EQ(used.exit_code, 0) << used.err;
    const auto j = nlohmann::json::parse(used.out);
    EXPECT_EQ(j["adapter_active"], true);
    EXPECT_DOUBLE_EQ(j["results"][1]["bits_per_value"].get<double>(), 3.25);
}

TEST_F(CliCalibrate, SameTextSameModelSameProfile) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const Profile first = loaded();
    ASSERT_EQ(calibrate("").exit_code, 0);
    EXPECT_EQ(loaded(), first);
    ASSERT_EQ(calibrate("--target-ctx 512").exit_code, 0);
    EXPECT_FALSE(loaded().layers == first.layers) << "keys in other positions have other statistics";
    EXPECT_EQ(loaded().layers[0].v, first.layers[0].v) << "values know no positions";
}

TEST_F(CliCalibrate, QuantisedModelHasTheFingerprintOfItsExpansion) {
    write_tiny_model(model, {.mixed = true});
    ASSERT_EQ(calibrate("--no-expand").exit_code, 0);
    const std::string quantised = loaded().fingerprint();
    const Outcome     o =
        run_tool("calibrate --tokens 1024 -t 1 -m '" + model + "' -o '" + file + "'", "env TIGHTKV_CACHE='" + folder.path("cache") + "'");
    ASSERT_EQ(o.exit_code, 0) << o.err;
    EXPECT_EQ(loaded().fingerprint(), quantised);
}

TEST_F(CliCalibrate, ProfileOfAnotherModelIsRefusedWithBothFingerprints) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const std::string other = folder.path("other.gguf"), other_file = folder.path("other.tkv");
    write_tiny_model(other, {.seed = 2});
    ASSERT_EQ(run_tool("calibrate --tokens 1024 -t 1 -m '" + other + "' -o '" + other_file + "'").exit_code, 0);
    Profile q;
    ASSERT_TRUE(Profile::load(other_file, q).ok());
    EXPECT_NE(q.fingerprint(), loaded().fingerprint());
    expect_refusal(eval(other, file), 1, {file, other, loaded().fingerprint(), q.fingerprint()});
    expect_refusal(eval(model, other_file), 1, {other_file, model, loaded().fingerprint(), q.fingerprint()});
    EXPECT_EQ(eval(other, other_file).exit_code, 0);
}

// The model's fingerprint is of its own blocks, however many the profile has, so that `info` shows the same.
TEST_F(CliCalibrate, ProfileOfALargerModelIsRefusedWithBothFingerprints) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const std::string own = loaded().fingerprint(), larger = folder.path("larger.tkv");
    Profile           p = loaded();
    p.layers.push_back(p.layers[0]);
    p.layers[1].block = 1;
    ASSERT_TRUE(p.save(larger).ok());
    ASSERT_NE(p.fingerprint(), own);
    expect_refusal(eval(model, larger), 1, {larger, model, p.fingerprint(), own});
}

TEST_F(CliCalibrate, ProfilesAreLookedAtBeforeAModelIsExpanded) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const std::string quantised = folder.path("quantised.gguf"), cache = folder.path("cache");
    write_tiny_model(quantised, {.mixed = true, .seed = 2});
    const Outcome o = run_tool("eval --ctx 32 --chunks 1 -t 1 -m '" + quantised + "' --cache 'turbo3:profile=" + file + "'",
                               "env TIGHTKV_CACHE='" + cache + "'");
    expect_refusal(o, 1, {file, quantised, "belongs to another model"});
    EXPECT_FALSE(std::filesystem::exists(cache + "/models")) << "nothing was expanded";
}

TEST_F(CliCalibrate, ProfileOfAnotherHeadDimIsRefused) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    write_tiny_model(model, {.head_dim = 96});
    expect_refusal(eval(model, file), 1, {file, "head_dim 64", "has 96"});
}

TEST_F(CliCalibrate, DamagedProfilesAreRefused) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const auto size = fs::file_size(file);
    Profile    p    = loaded();
    for (const auto part : {size - 1, size / 2, uintmax_t{9}, uintmax_t{0}}) {
        fs::resize_file(file, part);
        expect_refusal(eval(model, file), 1, {file, "profile"});
        expect_refusal(run_tool("info '" + file + "'"), 1, {file, "profile"});
    }
    p.layers[0].v[1].matrix[7] = std::nanf("");
    ASSERT_TRUE(p.save(file).ok());
    expect_refusal(eval(model, file), 1, {file, "not finite"});
    expect_refusal(run_tool("info '" + file + "'"), 1, {file, "not finite"});
    expect_refusal(run_tool("run --cache 'turbo4:profile=" + file + "' -- echo started"), 1, {file, "not finite"});
    expect_refusal(run_tool("info /no/such.tkv"), 1, {"/no/such.tkv", "No such file"});
}

TEST_F(CliCalibrate, NothingIsLostWhereItFails) {
    ASSERT_EQ(calibrate("").exit_code, 0);
    const Profile     before = loaded();
    const std::string text   = folder.path("short.txt");
    std::ofstream(text) << "Too short.\n";
    expect_refusal(calibrate("--text '" + text + "'"), 1, {text, "too short", "1024"});
    expect_refusal(calibrate("--text /no/such.txt"), 1, {"/no/such.txt"});
    expect_refusal(calibrate("--target-ctx 4096"), 2, {"--target-ctx 4096", "up to 1024"});
    expect_refusal(calibrate("-m /no/such.gguf"), 2, {}); // given twice
    expect_refusal(calibrate("--tokens 128"), 2, {"1024"});
    EXPECT_EQ(loaded(), before);
    size_t files = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder.path())) files++;
    EXPECT_EQ(files, 3u) << "a part of a file was left behind"; // model, profile, text
}

TEST_F(CliCalibrate, BudgetChoosesFormatsAndSaysWhatTheyAreWorth) {
    const Outcome made = calibrate("--budget 3.5");
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_TRUE(has(made.out, "turbo3t everywhere (3.250 bits) KLD")) << made.out;
    const Profile p = loaded();
    ASSERT_TRUE(p.layers[0].k_format && p.layers[0].v_format);
    EXPECT_LE(bits_per_value({}, p, 0), 3.5);
    EXPECT_TRUE(has(run_tool("info '" + file + "'").out, format(*p.layers[0].k_format).name));
    const Outcome used = eval(model, file);
    ASSERT_EQ(used.exit_code, 0) << used.err;
    EXPECT_DOUBLE_EQ(nlohmann::json::parse(used.out)["results"][1]["bits_per_value"].get<double>(), bits_per_value({}, p, 0));
    expect_refusal(calibrate("--budget 1.5"), 2, {"--budget 1.5", "2.25"});
    EXPECT_EQ(loaded(), p);
}

} // namespace tightkv::tool::test
