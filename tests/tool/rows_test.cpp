// Rows and queries seen while a model runs, against the arithmetic of the tiny model's single layer; and what rewriting rows does.
#include "engine_llama_rows.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/half.h"
#include "engine_llama.h"
#include "errors.h"
#include "tiny_model.h"

using namespace tightkv;
using namespace tightkv::tool;
using namespace tightkv::tool::test;

namespace {

constexpr int    kHeadDim = 64, kHeads = 4, kKvHeads = 2, kEmbd = 256;
constexpr double kEps = 1e-5; // of the tiny model's RMS norm

const CacheChoice kF16{.name = "f16", .stock = true, .spec = {}};

struct TinyFile {
    std::string                         path = testing::TempDir() + "rows_test." + std::to_string(::getpid()) + ".gguf";
    std::map<std::string, TensorInFile> tensors;
    TinyFile() {
        write_tiny_model(path);
        tensors = read_tensors(path);
        start_engine({.adapter = "", .need_adapter = false});
    }
    ~TinyFile() { std::filesystem::remove(path); }
};
TinyFile& tiny() {
    static TinyFile f;
    return f;
}

// W x for the normalised embedding x of a token: the rows before RoPE, which does nothing at position 0 and never anything to V.
struct Projected {
    std::vector<float> rows;
    std::vector<float> tolerance; // of a sum of kEmbd products in f32, in any order, and of the normalisation before it
};
Projected project(const std::string& weights, Token token) {
    const auto&  embd = tiny().tensors.at("token_embd.weight").values;
    const auto&  norm = tiny().tensors.at("blk.0.attn_norm.weight").values;
    const auto&  w    = tiny().tensors.at(weights).values;
    double       sum  = 0;
    const float* e    = &embd[static_cast<size_t>(token) * kEmbd];
    for (int i = 0; i < kEmbd; i++) sum += static_cast<double>(e[i]) * static_cast<double>(e[i]);
    const double scale = 1 / std::sqrt(sum / kEmbd + kEps);
    Projected    p;
    for (size_t r = 0; r < w.size() / kEmbd; r++) {
        double dot = 0, size = 0;
        for (size_t i = 0; i < kEmbd; i++) {
            const double term = static_cast<double>(w[r * kEmbd + i]) * static_cast<double>(e[i]) * scale * static_cast<double>(norm[i]);
            dot += term, size += std::abs(term);
        }
        p.rows.push_back(static_cast<float>(dot));
        p.tolerance.push_back(static_cast<float>(size * 2 * kEmbd * 0x1p-24));
    }
    return p;
}
void expect_near(std::span<const float> seen, const Projected& p, const std::string& what) {
    ASSERT_EQ(seen.size(), p.rows.size()) << what;
    for (size_t i = 0; i < seen.size(); i++) ASSERT_NEAR(seen[i], p.rows[i], p.tolerance[i]) << what << " value " << i;
}

// Everything that was shown, by (stream, position).
struct Recorder : RowObserver {
    std::map<std::pair<int64_t, int>, std::vector<float>> keys, values, queries_seen;
    std::map<std::pair<int64_t, int>, int64_t>            cell;
    std::vector<std::pair<int64_t, int>>                  order; // of the tokens in the last write
    int                                                   calls = 0;

    void keys_values(const WrittenRows& w) override {
        calls++;
        ASSERT_EQ(w.layer, 0);
        ASSERT_EQ(w.head_dim, kHeadDim);
        ASSERT_EQ(w.n_kv_heads, kKvHeads);
        ASSERT_EQ(w.positions.size(), static_cast<size_t>(w.n_tokens));
        const size_t n = kHeadDim * kKvHeads;
        ASSERT_EQ(w.rows.size(), n * w.positions.size());
        order.clear();
        for (size_t t = 0; t < w.positions.size(); t++) {
            const std::pair<int64_t, int> at(w.cells[t] / w.cells_per_stream, w.positions[t]);
            const auto                    row = w.rows.subspan(t * n, n);
            (w.operand == Operand::key ? keys : values)[at].assign(row.begin(), row.end());
            cell[at] = w.cells[t];
            order.push_back(at);
            for (size_t i = 0; i < n; i++) ASSERT_EQ(w.cached(w.cells[t])[i], float_to_half(row[i])) << "token " << t << " value " << i;
        }
    }
    void queries(const QueryRows& q) override {
        ASSERT_EQ(q.layer, 0);
        ASSERT_EQ(q.head_dim, kHeadDim);
        ASSERT_EQ(q.n_heads, kHeads);
        ASSERT_EQ(q.n_kv_heads, kKvHeads);
        ASSERT_EQ(static_cast<size_t>(q.n_tokens), order.size());
        const size_t n = kHeadDim * kHeads;
        for (size_t t = 0; t < order.size(); t++) {
            ASSERT_EQ(q.positions[t], order[t].second);
            queries_seen[order[t]].assign(q.rows.begin() + static_cast<std::ptrdiff_t>(t * n),
                                          q.rows.begin() + static_cast<std::ptrdiff_t>((t + 1) * n));
        }
    }
};

// Writes the rows that `change` makes of the rows seen; positions are those of the rows.
template <class F> struct Rewriter : RowObserver {
    F change;
    explicit Rewriter(F f) : change(std::move(f)) {}
    void keys_values(const WrittenRows& w) override { change(w); }
};

std::vector<BatchToken> tokens_of(const std::vector<Token>& tokens, int sequence = 0, int from = 0) {
    std::vector<BatchToken> b;
    for (size_t i = 0; i < tokens.size(); i++) b.push_back({tokens[i], from + static_cast<int>(i), sequence, i + 1 == tokens.size()});
    return b;
}

// Logits of the last token: all but `singly` tokens in one batch, those one by one.
std::vector<float> last_logits(RowObserver* observer, const std::vector<Token>& tokens, size_t singly = 0,
                               const std::string& path = tiny().path) {
    const Model model(path);
    Context     c(model, kF16, {.tokens = 64, .batch = 32, .outputs = 1, .observer = observer});
    auto        batch = tokens_of(tokens);
    size_t      done  = batch.size() - singly;
    if (done > 0) {
        batch[done - 1].output = true;
        EXPECT_TRUE(c.decode(std::span(batch).first(done)));
    }
    for (; done < batch.size(); done++) {
        batch[done].output = true;
        EXPECT_TRUE(c.decode(std::span(batch).subspan(done, 1)));
    }
    const auto l = c.logits(singly ? 0 : static_cast<int>(batch.size()) - 1);
    return {l.begin(), l.end()};
}

const std::vector<Token> kText = {1, 270, 300, 265, 290, 301, 280, 275};

} // namespace

TEST(Rows, AreThoseOfTheModelOnBothPaths) {
    for (const size_t singly : {size_t{0}, size_t{3}, kText.size()}) {
        Recorder seen;
        last_logits(&seen, kText, singly);
        ASSERT_EQ(seen.values.size(), kText.size());
        ASSERT_EQ(seen.queries_seen.size(), kText.size());
        for (size_t i = 0; i < kText.size(); i++) {
            const std::pair<int64_t, int> at(0, static_cast<int>(i));
            expect_near(seen.values.at(at), project("blk.0.attn_v.weight", kText[i]), "value of token " + std::to_string(i));
            EXPECT_EQ(seen.cell.at(at), static_cast<int64_t>(i));
        }
        expect_near(seen.keys.at({0, 0}), project("blk.0.attn_k.weight", kText[0]), "key");
        expect_near(seen.queries_seen.at({0, 0}), project("blk.0.attn_q.weight", kText[0]), "query");
        // RoPE turns pairs: lengths stay, directions do not.
        const Projected k      = project("blk.0.attn_k.weight", kText[5]);
        double          before = 0, after = 0, turned = 0;
        for (size_t j = 0; j < k.rows.size(); j++) {
            const auto a = static_cast<double>(k.rows[j]), b = static_cast<double>(seen.keys.at({0, 5})[j]);
            before += a * a, after += b * b, turned += (a - b) * (a - b);
        }
        EXPECT_NEAR(after / before, 1, 1e-4);
        EXPECT_GT(turned / before, 0.1);
    }
}

TEST(Rows, OfSeveralSequences) {
    const Model model(tiny().path);
    Recorder    seen;
    Context     c(model, kF16, {.tokens = 64, .sequences = 3, .batch = 32, .outputs = 3, .observer = &seen});
    const auto  token = [](int sequence, int position) { return 262 + 20 * sequence + position; };
    // Interleaved, as no cache keeps them: the host sorts them by sequence.
    for (int p = 0; p < 6; p += 2) {
        std::vector<BatchToken> batch;
        for (const int i : {p, p + 1})
            for (const int s : {2, 0, 1}) batch.push_back({token(s, i), i, s, i == p + 1});
        ASSERT_TRUE(c.decode(batch));
    }
    std::vector<BatchToken> single;
    for (const int s : {1, 2, 0}) single.push_back({token(s, 6), 6, s, true});
    ASSERT_TRUE(c.decode(single));
    for (int s = 0; s < 3; s++) {
        for (int i = 0; i <= 6; i++) {
            const std::string what = "sequence " + std::to_string(s) + " position " + std::to_string(i);
            ASSERT_TRUE(seen.values.contains({s, i})) << what;
            expect_near(seen.values.at({s, i}), project("blk.0.attn_v.weight", token(s, i)), what);
        }
        expect_near(seen.keys.at({s, 0}), project("blk.0.attn_k.weight", token(s, 0)), "key");
        expect_near(seen.queries_seen.at({s, 0}), project("blk.0.attn_q.weight", token(s, 0)), "query");
    }
}

TEST(Rows, WrittenBackAsTheyAreChangeNothing) {
    Rewriter same([](const WrittenRows& w) {
        const size_t n = w.rows.size() / w.cells.size();
        for (size_t t = 0; t < w.cells.size(); t++)
            for (size_t i = 0; i < n; i++) w.cached(w.cells[t])[i] = float_to_half(w.rows[t * n + i]);
    });
    for (const size_t singly : {size_t{0}, size_t{3}}) EXPECT_EQ(last_logits(&same, kText, singly), last_logits(nullptr, kText, singly));
}

TEST(Rows, ZerosForValuesEndAllTalkBetweenTokens) {
    Rewriter           zeros([](const WrittenRows& w) {
        if (w.operand == Operand::value)
            for (const int64_t c : w.cells) std::ranges::fill(w.cached(c), uint16_t{0});
    });
    std::vector<Token> other(kText);
    for (size_t i = 0; i + 1 < other.size(); i++) other[i] = 310;
    for (const size_t singly : {size_t{0}, size_t{3}}) {
        EXPECT_NE(last_logits(nullptr, kText, singly), last_logits(nullptr, other, singly));
        EXPECT_EQ(last_logits(&zeros, kText, singly), last_logits(&zeros, other, singly));
        EXPECT_NE(last_logits(&zeros, kText, singly), last_logits(nullptr, kText, singly));
    }
}

TEST(Rows, OlderOnesCanBeRewritten) {
    const int last = static_cast<int>(kText.size()) - 1;
    Rewriter  at_once([&](const WrittenRows& w) {
        for (size_t t = 0; t < w.cells.size(); t++)
            if (w.positions[t] < last && w.operand == Operand::value) std::ranges::fill(w.cached(w.cells[t]), uint16_t{0});
    });
    Rewriter late([&](const WrittenRows& w) {
        if (w.positions[0] == last && w.operand == Operand::value)
            for (int64_t c = 0; c < last; c++) std::ranges::fill(w.cached(c), uint16_t{0});
    });
    // One layer: its rows do not depend on what attention gave before.
    EXPECT_EQ(last_logits(&late, kText, 1), last_logits(&at_once, kText, 1));
    EXPECT_NE(last_logits(&late, kText, 1), last_logits(nullptr, kText, 1));
}

// Models with a sliding window have two caches; layers without RoPE have the positions of those with it.
TEST(Rows, OfASlidingWindow) {
    const std::string path = tiny().path + ".sliding";
    write_tiny_model(path, {.sliding = true});
    std::vector<Token> text(kTinyWindow + 12);
    for (size_t i = 0; i < text.size(); i++) text[i] = static_cast<Token>(262 + i * 7 % 80);
    struct Layers : RowObserver {
        std::map<int, std::vector<int>> keys, values, asked; // by layer: positions in the order of their coming
        void                            keys_values(const WrittenRows& w) override {
            const size_t n = kHeadDim * kKvHeads;
            ASSERT_EQ(w.rows.size(), n * w.cells.size());
            ASSERT_EQ(w.positions.size(), w.cells.size());
            for (size_t t = 0; t < w.cells.size(); t++) {
                                           EXPECT_EQ(w.cells[t], w.positions[t]);
                                           for (size_t i = 0; i < n; i++) ASSERT_EQ(w.cached(w.cells[t])[i], float_to_half(w.rows[t * n + i]));
            }
                                       auto& seen = (w.operand == Operand::key ? keys : values)[w.layer];
            seen.insert(seen.end(), w.positions.begin(), w.positions.end());
        }
        void queries(const QueryRows& q) override {
            EXPECT_EQ(q.n_heads, kHeads);
            asked[q.layer].insert(asked[q.layer].end(), q.positions.begin(), q.positions.end());
        }
    };
    Rewriter no_values([](const WrittenRows& w) {
        if (w.operand == Operand::value && w.layer == 3)
            for (const int64_t c : w.cells) std::ranges::fill(w.cached(c), uint16_t{0});
    });
    for (const size_t singly : {size_t{0}, size_t{3}}) {
        Layers     seen;
        const auto plain = last_logits(nullptr, text, singly, path);
        EXPECT_EQ(last_logits(&seen, text, singly, path), plain);
        std::vector<int> order(text.size());
        std::iota(order.begin(), order.end(), 0);
        const std::map<int, std::vector<int>> all = {{0, order}, {1, order}, {2, order}, {3, order}};
        EXPECT_EQ(seen.keys, all);
        EXPECT_EQ(seen.values, all);
        EXPECT_EQ(seen.asked, all);
        EXPECT_NE(last_logits(&no_values, text, singly, path), plain);
    }
    std::filesystem::remove(path);
}

TEST(Rows, WhatAnObserverThrowsComesOut) {
    Rewriter    thrower([](const WrittenRows& w) {
        if (w.operand == Operand::value) throw std::runtime_error("seen enough");
    });
    const Model model(tiny().path);
    Context     c(model, kF16, {.tokens = 64, .batch = 32, .outputs = 1, .observer = &thrower});
    for (int i = 0; i < 2; i++) { // and the context can be asked again
        try {
            c.decode(tokens_of(kText));
            FAIL() << "nothing came";
        } catch (const std::runtime_error& e) {
            EXPECT_STREQ(e.what(), "seen enough");
        }
        c.clear();
    }
}

TEST(Rows, OnlyOfAnF16Cache) {
    const Model model(tiny().path);
    RowObserver any;
    try {
        const Context c(model, {.name = "q8_0", .stock = true, .spec = {}}, {.tokens = 64, .observer = &any});
        FAIL() << "nothing came";
    } catch (const Failure& e) {
        EXPECT_STREQ(e.what(), "rows of cache 'q8_0' cannot be watched; accepted: f16");
    }
}
