// Profiles inside the adapter, with a host that checks nothing itself: the right model uses them, any other runs as if there were none,
// also where rows were restored before the first graph.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "adapter_host.h"
#include "cache/calibrate.h"
#include "tiny_model.h"

using namespace tightkv;
using namespace tightkv::tool;
using namespace tightkv::tool::test;

namespace {

class AdapterProfile : public AdapterTest {
protected:
    std::string model_file(unsigned seed, int head_dim = 64, bool sliding = false) const {
        const std::string path =
            folder + "/" + std::to_string(seed) + "." + std::to_string(head_dim) + (sliding ? ".sliding" : "") + ".gguf";
        write_tiny_model(path, {.head_dim = head_dim, .seed = seed, .sliding = sliding});
        return path;
    }
    // A profile of this model with matrices that are not Hadamard's: from rows of noise in which every coordinate has another size.
    std::string profile_file(const std::string& model) const {
        const int          d = 64;
        std::vector<float> rows;
        unsigned           state = 1;
        for (int i = 0; i < 600 * 2 * d; i++) {
            state = state * 1664525u + 1013904223u;
            rows.push_back((static_cast<float>(state >> 8) * 0x1p-24f - 0.4f) * static_cast<float>(1 + i % 7));
        }
        Calibration c;
        c.add_rows(0, tightkv::Operand::K, d, 2, rows);
        c.add_rows(0, tightkv::Operand::V, d, 2, rows);
        c.add_queries(0, d, 2, 2, rows);
        Profile p;
        EXPECT_TRUE(c.solve(1, p).ok());
        p.layers[0].norm       = norms_of(model, std::vector<int>{0})[0];
        const std::string path = model + ".tkv";
        EXPECT_TRUE(p.save(path).ok());
        return path;
    }

    // Logits after these many tokens more.
    static std::vector<float> decode(llama_context* h, const Model& m, int n) {
        std::vector<llama_token> tokens;
        for (int i = 0; i < n; i++) tokens.push_back(token(i));
        EXPECT_EQ(llama_decode(h, llama_batch_get_one(tokens.data(), n)), 0);
        const float* logits = llama_get_logits_ith(h, -1);
        return {logits, logits + m.n_vocab()};
    }
    static std::vector<float> logits(const Model& m, const std::string& spec) {
        const Host h = host(m, spec);
        return decode(h.get(), m, 40);
    }
};

} // namespace

TEST_F(AdapterProfile, TheRightModelUsesIt) {
    const Model       m(model_file(1));
    const std::string spec = "turbo3:profile=" + profile_file(m.path());
    EXPECT_NE(logits(m, spec), logits(m, "turbo3"));
    EXPECT_EQ(logits(m, spec), logits(m, spec));
}

TEST_F(AdapterProfile, AnotherModelRunsWithoutIt) {
    const Model       m(model_file(1)), other(model_file(2));
    const std::string file = profile_file(m.path()), own = profile_file(other.path());
    testing::internal::CaptureStderr();
    const std::vector<float> foreign = logits(other, "turbo3:profile=" + file);
    const std::string        said    = testing::internal::GetCapturedStderr();
    EXPECT_EQ(foreign, logits(other, "turbo3"));
    Profile p, q;
    ASSERT_TRUE(Profile::load(file, p).ok() && Profile::load(own, q).ok());
    for (const std::string& part : {file, p.fingerprint(), q.fingerprint()}) EXPECT_NE(said.find(part), std::string::npos) << said;
}

TEST_F(AdapterProfile, AProfileOfALargerModelIsToldWithTheModelsOwnFingerprint) {
    const Model       m(model_file(1)), other(model_file(2));
    const std::string file = profile_file(m.path()), own = profile_file(other.path());
    Profile           p, q;
    ASSERT_TRUE(Profile::load(file, p).ok() && Profile::load(own, q).ok());
    p.layers.push_back(p.layers[0]);
    p.layers[1].block = 1;
    ASSERT_TRUE(p.save(file).ok());
    testing::internal::CaptureStderr();
    const std::vector<float> foreign = logits(other, "turbo3:profile=" + file);
    const std::string        said    = testing::internal::GetCapturedStderr();
    EXPECT_EQ(foreign, logits(other, "turbo3"));
    for (const std::string& part : {p.fingerprint(), q.fingerprint()}) EXPECT_NE(said.find(part), std::string::npos) << said;
}

TEST_F(AdapterProfile, FormatsThatAnotherModelsProfileChoseGoWithIt) {
    const Model       m(model_file(1)), other(model_file(2));
    const std::string file = profile_file(m.path());
    Profile           p;
    ASSERT_TRUE(Profile::load(file, p).ok());
    p.layers[0].k_format = FormatId::turbo8, p.layers[0].v_format = FormatId::turbo2;
    ASSERT_TRUE(p.save(file).ok());
    EXPECT_EQ(logits(other, "turbo3:profile=" + file), logits(other, "turbo3"));
    std::string as_specified = file + ".plain"; // the same transforms with the formats in the specification
    p.layers[0].k_format.reset(), p.layers[0].v_format.reset();
    ASSERT_TRUE(p.save(as_specified).ok());
    EXPECT_EQ(logits(m, "turbo3:profile=" + file), logits(m, "k=turbo8:v=turbo2:profile=" + as_specified));
}

TEST_F(AdapterProfile, RestoredRowsOutliveAProfileOfAnotherModel) {
    const Model       m(model_file(1)), other(model_file(2));
    const std::string file = profile_file(m.path());
    const Host        from = host(other, "turbo8");
    decode(from.get(), other, 40);
    std::vector<uint8_t> state(llama_state_seq_get_size(from.get(), 0));
    state.resize(llama_state_seq_get_data(from.get(), state.data(), state.size(), 0));
    const std::vector<float> exact = decode(from.get(), other, 1);
    const Host               to    = host(other, "turbo8:profile=" + file);
    ASSERT_NE(llama_state_seq_set_data(to.get(), state.data(), state.size(), 0), 0u);
    const std::vector<float> restored = decode(to.get(), other, 1);
    const std::vector<float> nothing  = decode(host(other, "turbo8").get(), other, 1); // the control: without the 40 tokens
    double                   near = 0, far = 0;
    for (size_t i = 0; i < exact.size(); i++) {
        near += std::pow(static_cast<double>(restored[i] - exact[i]), 2);
        far += std::pow(static_cast<double>(nothing[i] - exact[i]), 2);
    }
    EXPECT_LT(near, 0.01 * far); // 8 bits, coded twice: errors of a hundredth in the rows, in squares
}

// One line, also where the host goes on to place what was left to it, and where the model has two caches.
TEST_F(AdapterProfile, AnotherShapeRunsStock) {
    for (const bool sliding : {false, true}) {
        const Model       m(model_file(1)), other(sliding ? model_file(1, 64, true) : model_file(1, 96)); // four layers; wider heads
        const std::string file = profile_file(m.path()), renamed = file + (sliding ? ".sliding" : ".plain");
        std::filesystem::copy_file(file, renamed);
        testing::internal::CaptureStderr();
        const std::vector<float> stock = logits(other, "turbo3:profile=" + renamed);
        const std::string        said  = testing::internal::GetCapturedStderr();
        EXPECT_TRUE(said.starts_with("tightkv: the host runs stock: profile " + renamed + " does not fit this model: ")) << said;
        EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
        EXPECT_NE(said.find(sliding ? "has no block" : "2 KV heads of head_dim 64 in block 0"), std::string::npos) << said;
        EXPECT_EQ(stock, logits(other, "off"));
        EXPECT_NE(stock, logits(other, "turbo3"));
    }
}

TEST_F(AdapterProfile, TheNextCacheIsCompressedAgain) {
    const Model       m(model_file(1)), wide(model_file(1, 96));
    const std::string file = profile_file(m.path());
    for (int i = 0; i < 2; i++) {
        EXPECT_EQ(logits(wide, "turbo3:profile=" + file), logits(wide, "off"));
        EXPECT_NE(logits(wide, "turbo3"), logits(wide, "off"));
    }
}

TEST_F(AdapterProfile, MissingFileIsRefusedWhenTheSpecificationIsSet) {
    EXPECT_THROW(set_cache_spec("turbo3:profile=/no/such.tkv"), std::runtime_error);
}
