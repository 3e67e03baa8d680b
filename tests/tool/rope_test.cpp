// The frequencies that are read from a running model's graph: keys of one token at many positions are one row, turned by them. (The first
// layer's keys depend on the token and its position alone.)
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>

#include "engine_llama.h"
#include "engine_llama_rows.h"
#include "tiny_model.h"

namespace tightkv::tool::test {

namespace {

constexpr int kTokens = 48;

struct Keys : RowObserver {
    std::vector<float>  rows; // [token][2 * head_dim]
    std::optional<Rope> rope;
    void                keys_values(const WrittenRows& w) override {
        if (w.operand == Operand::key) rows.assign(w.rows.begin(), w.rows.end());
    }
    void queries(const QueryRows& q) override { rope = q.rope; }
};

} // namespace

TEST(Rope, FrequenciesOfARunningModelTurnItsKeys) {
    start_engine({.adapter = "", .need_adapter = false});
    const std::string path = testing::TempDir() + "rope_test." + std::to_string(::getpid()) + ".gguf";
    write_tiny_model(path);
    Keys keys;
    {
        const Model             model(path);
        Context                 context(model, {.name = "f16", .stock = true, .spec = {}},
                                        {.tokens = kTokens, .batch = kTokens, .outputs = 1, .observer = &keys});
        std::vector<BatchToken> batch;
        for (int i = 0; i < kTokens; i++) batch.push_back({300, i, 0, i == kTokens - 1});
        ASSERT_TRUE(context.decode(batch));
    }
    std::filesystem::remove(path);
    ASSERT_TRUE(keys.rope.has_value());
    const size_t pairs = keys.rope->frequencies.size(), d = 64, n = keys.rows.size() / kTokens;
    ASSERT_EQ(pairs, d / 2);
    ASSERT_EQ(n, 2 * d);
    for (size_t t = 1; t < kTokens; t++)
        for (size_t head = 0; head < n; head += d)
            for (size_t i = 0; i < pairs; i++) {
                const size_t x = head + (keys.rope->halves ? i : 2 * i), y = head + (keys.rope->halves ? i + pairs : 2 * i + 1);
                const double a = static_cast<double>(keys.rows[x]), b = static_cast<double>(keys.rows[y]);
                const double angle = static_cast<double>(t) * keys.rope->frequencies[i], size = std::hypot(a, b);
                // The host's angles are products of f32 factors, one for each pair before this one; its sines and cosines are f32.
                const double tolerance = size * 0x1p-23 * (2 + angle * static_cast<double>(i + 2));
                EXPECT_NEAR(keys.rows[t * n + x], a * std::cos(angle) - b * std::sin(angle), tolerance) << t << " " << i;
                EXPECT_NEAR(keys.rows[t * n + y], a * std::sin(angle) + b * std::cos(angle), tolerance) << t << " " << i;
            }
}

} // namespace tightkv::tool::test
