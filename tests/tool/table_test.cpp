#include "table.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "errors.h"

using namespace tightkv::tool;

namespace {
const std::vector<Json> kRows = {{{"cache", "a|b"}, {"kld", 0.125}, {"n", 3}}, {{"cache", "say \"x\", y"}, {"kld", -1.5}}};
} // namespace

TEST(Table, MarkdownPadsAlignsAndEscapes) {
    EXPECT_EQ(to_markdown({{"cache", "cache", ""}, {"kld", "ΔK", "{:+.2f}"}, {"n", "n", ""}}, kRows), "| cache      |    ΔK |   n |\n"
                                                                                                      "|------------|------:|----:|\n"
                                                                                                      "| a\\|b       | +0.12 |   3 |\n"
                                                                                                      "| say \"x\", y | -1.50 |     |\n");
}

TEST(Table, MarkdownOfNothing) { EXPECT_EQ(to_markdown({{"a", "a", ""}}, {}), "| a   |\n|-----|\n"); }

TEST(Table, CsvQuotesAndKeepsPrecision) {
    EXPECT_EQ(to_csv(kRows), "cache,kld,n\r\na|b,0.125,3\r\n\"say \"\"x\"\", y\",-1.5,\r\n");
    EXPECT_EQ(to_csv({{{"a,b", "line\nbreak"}, {"c", nullptr}, {"d", true}, {"e", 0.1}}}),
              "\"a,b\",c,d,e\r\n\"line\nbreak\",,true,0.1\r\n");
}

TEST(Table, InnerObjectsBecomeColumns) {
    const std::vector<Json> rows = {{{"a", 1}, {"ratio", {{"x", 2.5}, {"y", {{"z", 3}}}}}}};
    EXPECT_EQ(write_table(TableFormat::csv, {}, rows, {}), "a,ratio.x,ratio.y.z\r\n1,2.5,3\r\n");
    EXPECT_EQ(write_table(TableFormat::md, {{"ratio.x", "x", "{:.2f}"}}, rows, {}), "|    x |\n|-----:|\n| 2.50 |\n");
    EXPECT_EQ(Json::parse(write_table(TableFormat::jsonl, {}, rows, {}))["ratio"]["y"]["z"], 3);
}

TEST(Table, JsonlIsOneObjectALine) {
    const std::string text = write_table(TableFormat::jsonl, {}, {{{"x", "a\nb"}}, {{"x", 1.0 / 3}}}, {{"model", "m"}});
    ASSERT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
    const Json first = Json::parse(text.substr(0, text.find('\n'))), second = Json::parse(text.substr(text.find('\n') + 1));
    EXPECT_EQ(first["model"], "m");
    EXPECT_EQ(first["x"], "a\nb");
    EXPECT_EQ(second["x"].get<double>(), 1.0 / 3); // no digits lost
}

TEST(Table, JsonHasResultsBesideTheRest) {
    const Json j = Json::parse(write_table(TableFormat::json, {}, kRows, {{"ctx", 512}}));
    EXPECT_EQ(j["ctx"], 512);
    ASSERT_EQ(j["results"].size(), 2u);
    EXPECT_EQ(j["results"][0]["cache"], "a|b");
}

TEST(Table, JsonOfWhatIsNoUtf8) { // names of files
    EXPECT_EQ(to_json({{"name", "a\xff"
                                "b"}}),
              "{\n  \"name\": \"a\xef\xbf\xbd"
              "b\"\n}\n");
}

TEST(Table, FormatNames) {
    EXPECT_EQ(parse_table_format("jsonl"), TableFormat::jsonl);
    try {
        parse_table_format("xml");
        FAIL();
    } catch (const Failure& f) {
        EXPECT_EQ(f.exit_code, kExitUsage);
        EXPECT_NE(std::string(f.what()).find("md, csv, json, jsonl"), std::string::npos);
    }
}
