#include "text.h"

#include <cstdio>
#include <fstream>
#include <functional>
#include <numeric>

#include <gtest/gtest.h>

#include "cache_choice.h"
#include "errors.h"
#include "progress.h"

using namespace tightkv::tool;

namespace {
std::string message_of(const std::function<void()>& f, int exit_code) {
    try {
        f();
    } catch (const Failure& e) {
        EXPECT_EQ(e.exit_code, exit_code);
        return e.what();
    }
    ADD_FAILURE() << "no failure";
    return {};
}
} // namespace

TEST(Text, ChunksAndTheirFirstToken) {
    std::vector<Token> tokens(10);
    std::iota(tokens.begin(), tokens.end(), 100);
    using Chunks = std::vector<std::vector<Token>>;
    EXPECT_EQ(cut_chunks(tokens, 4, 2, -1, "t"), (Chunks{{100, 101, 102, 103}, {104, 105, 106, 107}}));
    EXPECT_EQ(cut_chunks(tokens, 4, 2, 1, "t"), (Chunks{{1, 101, 102, 103}, {1, 105, 106, 107}}));
    EXPECT_EQ(cut_chunks(tokens, 5, 2, -1, "t").size(), 2u); // exactly enough
}

TEST(Text, TooShortSaysHowMuch) {
    const std::string m = message_of([] { cut_chunks(std::vector<Token>(7), 4, 2, -1, "book.txt"); }, kExitFailure);
    for (const char* part : {"book.txt", "7 tokens", "need 8"}) EXPECT_NE(m.find(part), std::string::npos) << m;
}

TEST(Text, Files) {
    EXPECT_NE(message_of([] { read_text("/nonexistent/x"); }, kExitFailure).find("/nonexistent/x"), std::string::npos);
    EXPECT_NE(message_of([] { read_text("/tmp"); }, kExitFailure).find("folder"), std::string::npos);
    const std::string path = testing::TempDir() + "/tightkv_text";
    std::ofstream(path).close();
    EXPECT_NE(message_of([&] { read_text(path); }, kExitFailure).find("empty"), std::string::npos);
    std::ofstream(path, std::ios::binary) << std::string("a\0b\r\n", 5);
    EXPECT_EQ(read_text(path), std::string("a\0b\r\n", 5));
    std::remove(path.c_str());
}

TEST(Text, Lists) {
    EXPECT_EQ(split_list("a, b,c"), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(split_list(""), (std::vector<std::string>{""}));
    EXPECT_EQ(split_list("a,,b"), (std::vector<std::string>{"a", "", "b"}));
}

TEST(CacheChoice, OursAndTheirs) {
    EXPECT_TRUE(parse_cache("q8_0").stock);
    EXPECT_FALSE(parse_cache("turbo4").stock);
    EXPECT_TRUE(parse_cache("k=f16:v=f16").stock);
    EXPECT_EQ(parse_cache("k=f16:v=f16").name, "f16");
    EXPECT_EQ(parse_cache_list("turbo4,q4_0,turbo4,k=turbo4:v=turbo3").size(), 3u);
    const std::string m = message_of([] { parse_cache_list("q8_0,turbo9"); }, kExitUsage);
    for (const char* part : {"turbo9", "turbo3", "q4_0"}) EXPECT_NE(m.find(part), std::string::npos) << m;
    message_of([] { parse_cache_list("q8_0,"); }, kExitUsage);
}

TEST(CacheChoice, MethodsOfTheLabWhereTheyAreAccepted) {
    const auto c = parse_cache_list("lab:cat3,q4_0,lab:cat3,lab:outlier2.5", LabCaches::accepted);
    ASSERT_EQ(c.size(), 3u);
    EXPECT_EQ(c[0].name, "lab:cat3");
    EXPECT_EQ(c[0].lab, "cat3");
    EXPECT_TRUE(c[0].stock);
    EXPECT_EQ(c[1].lab, "");
    const std::string m = message_of([] { parse_cache_list("lab:cat9", LabCaches::accepted); }, kExitUsage);
    for (const char* part : {"lab:cat9", "turbo3", "catv4", "kivi2", "outlier3.5"}) EXPECT_NE(m.find(part), std::string::npos) << m;
    EXPECT_NE(message_of([] { parse_cache_list("lab:cat3"); }, kExitUsage).find("`tightkv eval` only"), std::string::npos);
}

TEST(Progress, Minutes) {
    EXPECT_EQ(minutes(75), "1:15");
    EXPECT_EQ(minutes(59.6), "1:00");
    EXPECT_EQ(minutes(-3), "0:00");
}

TEST(Progress, LinesWhereThereIsNoTerminal) {
    ProgressLines p;
    EXPECT_EQ(p.due(0, 0, "one"), "");
    EXPECT_EQ(p.due(1.9, 0.5, "one"), "") << "what is done at once says nothing";
    EXPECT_EQ(p.due(2, 0.005, "one"), "tightkv: [  0 %] one");
    EXPECT_EQ(p.due(3, 0.02, "two"), "") << "stages of a second each would fill the screen";
    EXPECT_EQ(p.due(11.9, 0.02, "three"), "");
    EXPECT_EQ(p.due(12, 0.02, "three"), "tightkv: [  2 %] three, 9:48 left");
    EXPECT_EQ(p.due(41.9, 0.4, "three"), "");
    EXPECT_EQ(p.due(42, 0.4, "three"), "tightkv: [ 40 %] three, 1:03 left");
    EXPECT_EQ(p.due(100, 1, "four"), "tightkv: [100 %] four, 0:00 left");
}

TEST(Progress, LinesOfWorkWithoutStages) {
    ProgressLines p;
    EXPECT_EQ(p.due(2, 0.5, ""), "tightkv: [ 50 %] 0:02 left");
    EXPECT_EQ(p.due(31.9, 0.75, ""), "");
    EXPECT_EQ(p.due(32, 0.75, ""), "tightkv: [ 75 %] 0:11 left");
}
