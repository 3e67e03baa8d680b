#include "disturbance.h"

#include <gtest/gtest.h>

namespace tightkv::tool::test {

TEST(Disturbance, NamesTheSideThatCannotBeTrusted) {
    std::vector<Json> rows = {{{"format", "turbo4"}, {"depth", 1024}, {"spread", 0.2}, {"rivals", {{"llama:f16", {{"spread", 0.3}}}}}},
                              {{"format", "turbo3"}, {"depth", 2048}, {"spread", 0.1}, {"rivals", Json::object()}}};
    EXPECT_EQ(disturbance(rows), "");
    EXPECT_EQ(disturbance({}), "");
    rows[1]["spread"] = 0.49;
    EXPECT_EQ(disturbance(rows), "");
    rows[1]["spread"] = 0.5;
    EXPECT_NE(disturbance(rows), "");
    rows[1]["spread"] = 0.61;
    EXPECT_TRUE(disturbance(rows).starts_with("rounds of turbo3 at depth 2048 lie 61 % of their median apart")) << disturbance(rows);
    rows[0]["rivals"]["llama:f16"]["spread"] = 0.7;
    EXPECT_TRUE(disturbance(rows).starts_with("rounds of llama:f16 at depth 1024 lie 70 %")) << disturbance(rows);
}

} // namespace tightkv::tool::test
