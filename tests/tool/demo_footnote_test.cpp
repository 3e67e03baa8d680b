#include "demo_footnote.h"

#include <gtest/gtest.h>

namespace tightkv::tool::test {

TEST(DemoFootnote, NamesTheMachineAndTheWorstSpreadOfEachDepth) {
    Json document = {{"threads", 2}, {"cpu", "Some CPU"}, {"isa", "avx2"}, {"rounds", 3}, {"speed", Json::array()}};
    EXPECT_EQ(demo_footnote(document), "2 threads, Some CPU, kernels avx2."); // interrupted before any speed was measured
    const auto add = [&](const char* cache, int depth, double spread) {
        document["speed"].push_back({{"cache", cache}, {"depth", depth}, {"tokens_per_second", 50.0}, {"spread", spread}});
    };
    add("f16", 0, 0.02), add("f16", 8192, 0.114), add("turbo4", 0, 0.061), add("turbo4", 8192, 0.05);
    EXPECT_EQ(demo_footnote(document),
              "2 threads, Some CPU, kernels avx2. t/s: median of 3 rounds, which lie apart, (largest - smallest) / "
              "median, by at most 6 % at 0, 11 % at 8K.");
    document["threads"] = 1;
    EXPECT_TRUE(demo_footnote(document).starts_with("1 thread, "));
}

} // namespace tightkv::tool::test
