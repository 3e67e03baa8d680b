// Both paths feed every token once and score the same positions.
#include "steps.h"

#include <map>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

using namespace tightkv::tool;

namespace {

Chunks make_chunks(size_t n, int ctx) {
    Chunks chunks(n, std::vector<Token>(static_cast<size_t>(ctx)));
    for (size_t c = 0; c < n; c++) std::iota(chunks[c].begin(), chunks[c].end(), static_cast<int>(c) * 1000);
    return chunks;
}

// Checks that positions of a sequence are contiguous from 0 after every fresh step; returns the scored (chunk, next token) pairs.
std::set<std::pair<size_t, Token>> walk(const std::vector<Step>& steps, const Chunks& chunks) {
    std::map<int, int>                 position;
    std::set<std::pair<size_t, Token>> scored;
    EXPECT_TRUE(steps.front().fresh);
    for (const Step& s : steps) {
        if (s.fresh) position.clear();
        for (const BatchToken& t : s.tokens) EXPECT_EQ(t.position, position[t.sequence]++);
        size_t outputs = 0;
        for (const BatchToken& t : s.tokens) outputs += t.output;
        EXPECT_EQ(outputs, s.outputs.size());
        for (const ScoredOutput& o : s.outputs) {
            const BatchToken& t = s.tokens[static_cast<size_t>(o.index)];
            EXPECT_TRUE(t.output);
            EXPECT_EQ(t.token, chunks[o.chunk][static_cast<size_t>(t.position)]);
            EXPECT_EQ(o.next, chunks[o.chunk][static_cast<size_t>(t.position) + 1]);
            EXPECT_TRUE(scored.emplace(o.chunk, o.next).second);
        }
    }
    return scored;
}

} // namespace

TEST(Steps, PathsScoreTheSamePositions) {
    const Chunks chunks  = make_chunks(5, 16);
    const auto   batched = walk(batched_steps(chunks, 6), chunks);
    EXPECT_EQ(batched.size(), 5u * 7u); // positions 8 … 14
    EXPECT_EQ(walk(decode_steps(chunks, 2, 0, 6), chunks), batched);
    EXPECT_EQ(walk(decode_steps(chunks, 5, 8, 6), chunks), batched);
    EXPECT_EQ(walk(decode_steps(chunks, 3, 8, 6), chunks), batched);
}

TEST(Steps, DecodeFeedsOneTokenPerSequence) {
    for (const Step& s : decode_steps(make_chunks(3, 16), 2, 0, 512)) {
        std::set<int> sequences;
        for (const BatchToken& t : s.tokens) EXPECT_TRUE(sequences.insert(t.sequence).second);
    }
}

TEST(Steps, CheckScoresEverythingOfTheFirstChunks) {
    const Chunks chunks = make_chunks(3, 16);
    EXPECT_EQ(walk(check_steps(batched_steps(chunks, 6), chunks, 99), chunks).size(), 15u);
    EXPECT_EQ(walk(check_steps(decode_steps(chunks, 2, 0, 6), chunks, 4), chunks).size(), 8u);
    EXPECT_EQ(check_steps(decode_steps(chunks, 2, 0, 6), chunks, 99).size(), 15u); // not into the second group
}

TEST(Steps, GroupsAreBalancedAndBounded) {
    EXPECT_EQ(decode_group(1, 512), 1);
    EXPECT_EQ(decode_group(16, 512), 16);
    EXPECT_EQ(decode_group(20, 512), 10);
    EXPECT_EQ(decode_group(16, 2048), 8);
    EXPECT_EQ(decode_group(3, 1 << 20), 1);
}
