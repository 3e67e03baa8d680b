// Exact rows: who keeps a slot, what every query of a batch sees; and the mean of the keys that a cache measures on its own run.
#include "cache/exact_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/half.h"
#include "cache/self_calibration.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

using Token = ExactLedger::Token;
using Entry = ExactLedger::Entry;

// Tokens of one sequence in cells of the same number as their positions, from `first` on.
std::vector<Token> run_of(int n, int first = 0, int stream = 0) {
    std::vector<Token> tokens;
    for (int i = first; i < first + n; i++) tokens.push_back({stream, i, i});
    return tokens;
}

std::set<int64_t> cells_of(std::span<const Entry> entries, bool sink) {
    std::set<int64_t> cells;
    for (const Entry& e : entries)
        if (e.cell >= 0 && e.sink == sink) cells.insert(e.cell);
    return cells;
}

using Cells = std::set<int64_t>;

// Every entry and the way from a cell to its slot say the same, and no cell has two slots.
void expect_consistent(const ExactLedger& l, int stream, int64_t n_cells) {
    std::map<int64_t, int> slot;
    for (int i = 0; i < l.slots(); i++)
        if (const int64_t cell = l.entries(stream)[static_cast<size_t>(i)].cell; cell >= 0) {
            ASSERT_TRUE(slot.insert({cell, i}).second) << "cell " << cell << " has two slots";
        }
    for (int64_t c = 0; c < n_cells; c++) ASSERT_EQ(l.slot_of(stream, c), slot.count(c) ? slot[c] : -1) << c;
}

} // namespace

TEST(ExactSlots, Formula) {
    struct Case {
        int     sink, window;
        int64_t cells;
        int     sinks, slots;
    };
    for (const Case& c : {Case{4, 32, 512, 4, 39},
                          {4, 32, 1024, 4, 39},
                          {4, 32, 2047, 4, 39},
                          {4, 32, 2048, 8, 43},
                          {4, 32, 65536, 256, 291},
                          {4, 32, 1 << 20, 256, 291},
                          {4, 0, 8192, 32, 32},
                          {0, 1, 8192, 0, 4},
                          {0, 0, 8192, 0, 0},
                          {4096, 0, 512, 512, 512},
                          {0, 4096, 512, 0, 515},
                          {4096, 4096, 65536, 65536, 65536 + 4099},
                          {4, 4, 1, 1, 5}}) {
        EXPECT_EQ(exact_sink_slots(c.sink, c.cells), c.sinks) << c.sink << ", " << c.cells;
        EXPECT_EQ(exact_slots(c.sink, c.window, c.cells), c.slots) << c.sink << ", " << c.window << ", " << c.cells;
        if (c.cells <= 1 << 16) {
            EXPECT_EQ(ExactLedger(c.sink, c.window, 1, c.cells).slots(), c.slots);
        }
    }
}

TEST(ExactLedger, OneTokenAtATime) {
    ExactLedger l(2, 3, 1, 32);
    for (int i = 0; i < 12; i++) {
        l.begin_batch(run_of(1, i));
        EXPECT_TRUE(l.few());
        EXPECT_EQ(l.slot_of_token(0), l.slot_of(0, i));
        EXPECT_GE(l.slot_of_token(0), 0) << "the newest token is always exact";
        EXPECT_EQ(l.order_of_query(0, 0, 1), i);
        expect_consistent(l, 0, 32);
    }
    EXPECT_EQ(cells_of(l.entries(0), true), (Cells{0, 1}));
    EXPECT_EQ(cells_of(l.entries(0), false), (Cells{6, 7, 8, 9, 10, 11})) << "the window and three more, for batches of four";
    for (const Entry& e : l.entries(0))
        if (e.cell >= 0) {
            EXPECT_EQ(e.order, e.cell) << "in the order of writing";
        }
}

TEST(ExactLedger, EveryQueryHasItsWindow) {
    ExactLedger l(0, 3, 1, 64);
    l.begin_batch(run_of(10));
    EXPECT_FALSE(l.few());
    EXPECT_EQ(l.largest_batch(), 10);
    for (int t = 0; t < 10; t++) EXPECT_EQ(l.order_of_query(0, t, 10), t);
    EXPECT_EQ(l.order_of_query(0, 0, 1), 9) << "other queries than the batch's: as its last token sees it";
    EXPECT_TRUE(l.before_batch(0).empty());
    const auto all = l.batch_entries(0);
    ASSERT_EQ(all.size(), 10u);
    for (int i = 0; i < 10; i++) {
        EXPECT_EQ(all[i].cell, i);
        EXPECT_EQ(all[i].order, i);
        EXPECT_EQ(l.index_in_stream(static_cast<size_t>(i)), i);
        EXPECT_EQ(l.slot_of_token(static_cast<size_t>(i)) >= 0, i >= 4) << "six slots, the last six tokens";
    }

    l.begin_batch(run_of(4, 10)); // the largest batch that needs no table of its own
    EXPECT_TRUE(l.few());
    EXPECT_TRUE(l.before_batch(0).empty());
    for (int t = 0; t < 4; t++)
        for (int64_t order = l.order_of_query(0, t, 4) - 2; order <= 10 + t; order++) EXPECT_GE(l.slot_of(0, order), 0) << "token " << t;

    l.begin_batch(run_of(5, 14));
    EXPECT_FALSE(l.few());
    Cells before;
    for (const ExactLedger::Kept& k : l.before_batch(0)) {
        before.insert(k.entry.cell);
        EXPECT_EQ(k.entry.order, k.entry.cell);
        EXPECT_TRUE(k.slot >= 0 && k.slot < l.slots());
    }
    EXPECT_EQ(before, (Cells{8, 9, 10, 11, 12, 13}));
}

// Against a plain record of what was written, over random batches in reused cells of several streams: every row of every query's window
// that was not written over is in the table, and nothing else is. (Sinks have slots of their own and lose them to later sinks.)
TEST(ExactLedger, RandomBatches) {
    Random random(61);
    for (const int window : {0, 1, 5, 40, 200})
        for (const int sink : {0, 2}) {
            constexpr int64_t kCells   = 48;
            constexpr int     kStreams = 2;
            ExactLedger       l(sink, window, kStreams, kCells);
            struct Written {
                int64_t order;
                bool    sink;
            };
            std::map<int64_t, Written> rows[kStreams]; // by cell
            int64_t                    next[kStreams] = {};
            for (int step = 0; step < 300; step++) {
                std::vector<Token> batch;
                const int          n = 1 + random.below(random.below(3) ? 4 : 24);
                std::set<int64_t>  used[kStreams];
                for (int i = 0; i < n; i++) {
                    Token t{random.below(kStreams), random.below(kCells), random.below(20)};
                    if (used[t.stream].insert(t.cell).second) batch.push_back(t);
                }
                if (random.below(20) == 0) {
                    const int64_t cell = random.below(kCells);
                    l.forget(0, cell);
                    rows[0].erase(cell);
                }
                l.begin_batch(batch);
                for (size_t i = 0; i < batch.size(); i++) {
                    const Token& t         = batch[i];
                    rows[t.stream][t.cell] = {next[t.stream]++, t.position < sink};
                    if (const int slot = l.slot_of_token(i); slot >= 0) {
                        ASSERT_EQ(l.slot_of(t.stream, t.cell), slot);
                    }
                }
                const int reach = static_cast<int>(std::min<int64_t>(window, kCells));
                for (int s = 0; s < kStreams; s++) {
                    expect_consistent(l, s, kCells);
                    const int          mine = l.batch_tokens(s);
                    std::vector<Entry> table(l.entries(s).begin(), l.entries(s).end());
                    if (!l.few()) {
                        table.clear();
                        for (const auto& k : l.before_batch(s)) table.push_back(k.entry);
                        for (const Entry& e : l.batch_entries(s)) table.push_back(e);
                    }
                    for (int t = 0; t < mine; t++) {
                        const int64_t last = next[s] - mine + t, begin = last - l.window() + 1;
                        ASSERT_EQ(l.order_of_query(s, t, mine), last);
                        ASSERT_EQ(l.window(), reach);
                        Cells want, got;
                        for (const auto& [cell, w] : rows[s])
                            if (!w.sink && w.order > last - reach && w.order <= last) want.insert(cell);
                        for (const Entry& e : table)
                            if (e.cell >= 0 && !e.sink && e.order >= begin && e.order <= last) got.insert(e.cell);
                        ASSERT_EQ(got, want) << "window " << window << ", step " << step << ", token " << t << " of " << mine;
                    }
                    for (const Entry& e : table)
                        if (e.cell >= 0) {
                            ASSERT_TRUE(rows[s].count(e.cell));
                            ASSERT_EQ(e.order, rows[s][e.cell].order) << "the row that was written last";
                            ASSERT_EQ(e.sink, rows[s][e.cell].sink);
                        }
                }
            }
        }
}

// Draft tokens that a host takes back and writes over: each query has its whole window all the same, of the rows that it sees.
TEST(ExactLedger, RowsThatWereTakenBackTakeNothingFromTheWindow) {
    constexpr int kWindow = 8, kCells = 256;
    ExactLedger   l(0, kWindow, 1, kCells);
    l.begin_batch(run_of(30));
    for (int next = 30; next < 90;) {
        l.begin_batch(run_of(ExactLedger::kFewTokens, next));
        next++; // one of the four was right
        l.begin_batch(run_of(1, next));
        std::vector<uint16_t> mask(kCells, kHalfNegInf);
        std::fill_n(mask.begin(), next + 1, uint16_t{0}); // the other two that are still in their cells are hidden
        AttentionArgs a;
        a.n_kv = kCells, a.n_tokens = a.n_streams = 1, a.mask = mask.data(), a.mask_type = MaskType::kF16;
        const std::vector<std::vector<Entry>> table = {{l.entries(0).begin(), l.entries(0).end()}};
        ExactMasks                            masks;
        masks.build(a, l, table, l.slots());
        masks.apply(a);
        ASSERT_EQ(a.exact.mask_type, MaskType::kBits);
        Cells seen, want;
        for (int i = 0; i < l.slots(); i++)
            if (static_cast<const uint64_t*>(a.exact.mask)[0] >> i & 1) seen.insert(table[0][static_cast<size_t>(i)].cell);
        for (int c = next - kWindow + 1; c <= next; c++) want.insert(c);
        ASSERT_EQ(seen, want);
        for (int c = 0; c < kCells; c++) ASSERT_EQ(static_cast<const uint64_t*>(a.mask)[c / 64] >> c % 64 & 1, c <= next - kWindow) << c;
        expect_consistent(l, 0, kCells);
        next++;
    }
}

TEST(ExactLedger, SinksOfSeveralSequences) {
    ExactLedger l(2, 0, 1, 2048); // two sequences
    for (int sequence = 0; sequence < 2; sequence++) {
        std::vector<Token> tokens;
        for (int i = 0; i < 6; i++) tokens.push_back({0, 100 * sequence + i, i});
        l.begin_batch(tokens);
    }
    EXPECT_EQ(cells_of(l.entries(0), true), (Cells{0, 1, 100, 101}));
    std::vector<Token> third;
    for (int i = 0; i < 6; i++) third.push_back({0, 200 + i, i});
    l.begin_batch(third);
    EXPECT_EQ(cells_of(l.entries(0), true), (Cells{100, 101, 200, 201})) << "the oldest make room";
    expect_consistent(l, 0, 2048);
    l.begin_batch(run_of(1, 50));
    EXPECT_EQ(l.slot_of_token(0), -1) << "no sink, no window";
}

// A prompt cache keeps the first token and writes the others again: the first stays exact.
TEST(ExactLedger, ASinkThatStaysIsNotPushedOut) {
    ExactLedger l(4, 8, 1, 512);
    l.begin_batch(run_of(20));
    for (int request = 0; request < 3; request++) {
        l.begin_batch(run_of(19, 1));
        EXPECT_EQ(cells_of(l.entries(0), true), (Cells{0, 1, 2, 3})) << request;
        expect_consistent(l, 0, 512);
    }
}

TEST(ExactLedger, MoreSinksInABatchThanSlots) {
    ExactLedger        l(2, 4, 1, 512);
    std::vector<Token> tokens; // three sequences of three tokens, one after the other
    for (int i = 0; i < 9; i++) tokens.push_back({0, i, i % 3});
    l.begin_batch(tokens);
    EXPECT_EQ(cells_of(l.entries(0), true), (Cells{6, 7}));
    for (size_t i = 0; i < 9; i++)
        if (tokens[i].position < 2) {
            EXPECT_EQ(l.slot_of_token(i) >= 0, i >= 6) << "a row must not be written to a slot that another one has: " << i;
        }
    expect_consistent(l, 0, 512);
}

TEST(ExactLedger, LongCachesWithManySinks) { // more slots than an int16 could name
    ExactLedger l(1024, 0, 1, 65536);
    ASSERT_EQ(l.slots(), 65536);
    for (int sequence = 0; sequence < 40; sequence++) {
        std::vector<Token> tokens;
        for (int i = 0; i < 1024; i++) tokens.push_back({0, sequence * 1024 + i, i});
        l.begin_batch(tokens);
    }
    for (int64_t c = 0; c < 40 * 1024; c++) {
        const int slot = l.slot_of(0, c);
        ASSERT_GE(slot, 0) << c;
        ASSERT_EQ(l.entries(0)[static_cast<size_t>(slot)].cell, c);
    }
}

TEST(ExactLedger, AdoptForgetClear) {
    ExactLedger l(2, 3, 2, 32);
    EXPECT_GE(l.adopt(1, 7, false), 0);
    EXPECT_GE(l.adopt(1, 8, true), 0);
    EXPECT_EQ(cells_of(l.entries(1), true), Cells{8});
    EXPECT_EQ(cells_of(l.entries(1), false), Cells{7});
    EXPECT_TRUE(cells_of(l.entries(0), false).empty()) << "the other stream";
    EXPECT_GE(l.adopt(1, 7, true), 0); // again, as another kind
    EXPECT_EQ(cells_of(l.entries(1), true), (Cells{7, 8}));
    EXPECT_TRUE(cells_of(l.entries(1), false).empty());
    const auto order = [&](int64_t cell) { return l.entries(1)[static_cast<size_t>(l.slot_of(1, cell))].order; };
    EXPECT_GT(order(7), order(8)) << "as if it had just been written";
    l.begin_batch(std::vector<Token>{{1, 9, 5}});
    EXPECT_LT(order(7), order(9));
    l.forget(1, 7), l.forget(1, 7), l.forget(1, 20);
    EXPECT_EQ(l.slot_of(1, 7), -1);
    expect_consistent(l, 1, 32);
    l.clear();
    for (int s = 0; s < 2; s++) {
        expect_consistent(l, s, 32);
        EXPECT_TRUE(cells_of(l.entries(s), true).empty() && cells_of(l.entries(s), false).empty());
    }
    EXPECT_EQ(l.largest_batch(), 0);
    EXPECT_EQ(ExactLedger(0, 3, 1, 32).adopt(0, 1, true), -1) << "no sinks wanted";
    EXPECT_EQ(ExactLedger(2, 0, 1, 32).adopt(0, 1, false), -1) << "no window wanted";
}

namespace {

constexpr int kHeads = 2, kDim = 32, kWidth = kHeads * kDim;

struct Calibrated { // a store with its calibration, written as the adapter does it
    std::unique_ptr<TileStore> store;
    SelfCalibration            calibration;
    explicit Calibrated(int tokens, const char* f = "turbo4") : calibration(tokens) {
        EXPECT_TRUE(TileStore::create(*find_format(f), Operand::K, {2, kHeads, kDim, 200}, store).ok());
    }
    struct Row {
        int                stream;
        int64_t            cell;
        int32_t            position;
        std::vector<float> x;
    };
    bool batch(const std::vector<Row>& rows) {
        for (const Row& r : rows)
            if (!calibration.done()) calibration.observe(*store, r.stream, r.cell, r.position, r.x.data());
        const bool set = !calibration.done() && calibration.update(*store);
        for (const Row& r : rows)
            for (int h = 0; h < kHeads; h++) (void)store->write(r.stream, h, r.cell, r.x.data() + h * kDim);
        return set;
    }
    std::vector<uint8_t> bytes(int stream, int64_t cell) const {
        const size_t         n = store->format().row_bytes(kDim);
        std::vector<uint8_t> out(kHeads * n);
        for (int h = 0; h < kHeads; h++) store->read_canonical(stream, h, cell, out.data() + size_t(h) * n);
        return out;
    }
};

std::vector<float> shifted_row(Random& random, float offset) {
    std::vector<float> x = gaussian(random, kWidth);
    for (int i = 0; i < kWidth; i++) x[i] += offset * static_cast<float>(i % 5 - 2);
    return x;
}

} // namespace

TEST(SelfCalibration, MeasuresTheMean) {
    Random              random(62);
    Calibrated          c(16);
    std::vector<double> sum(kWidth, 0.0);
    int                 counted = 0;
    bool                set     = false;
    for (int i = 0; !set; i++) {
        ASSERT_LT(i, 20);
        EXPECT_FALSE(c.calibration.done());
        std::vector<float> x = shifted_row(random, 3);
        if (i < SelfCalibration::kLeftOut)
            for (float& v : x) v *= 1000; // left out
        else
            for (int k = 0; k < kWidth; k++) sum[k] += x[k];
        counted += i >= SelfCalibration::kLeftOut;
        set = c.batch({{0, i, i, x}});
        EXPECT_EQ(set, counted == 16);
    }
    EXPECT_TRUE(c.calibration.done());
    for (int h = 0; h < kHeads; h++) {
        const float* mean = c.store->transform(h).mean();
        ASSERT_NE(mean, nullptr);
        for (int i = 0; i < kDim; i++) EXPECT_EQ(mean[i], static_cast<float>(sum[h * kDim + i] / 16)) << "summed in double, rounded once";
    }
}

// The mean is that of the same rows at the positions of longer texts: here of 20 … 39, 20 … 79, 20 … 159 and 20 … 199 tokens.
TEST(SelfCalibration, MeanIsThatOfLongerTexts) {
    constexpr int kSeen = 20, kCells = 200;
    const double  pi = std::acos(-1.0);
    Calibrated    c(kSeen - SelfCalibration::kLeftOut);
    const Rope    rope{{1.0, 0.1, 0.013, 0.0}, false}; // four pairs turn, the rest of a row does not
    c.calibration.set_rope(rope);
    const auto at = [&](int i, double position) { // value i of a row that turns by itself
        if (i >= 8) return double(i % 7) - 3;
        const double angle = position * rope.frequencies[i / 2] + i / 2;
        return 2 * std::cos(i % 2 ? angle - pi / 2 : angle);
    };
    for (int t = 0; t < kSeen; t++) {
        std::vector<float> x(kWidth);
        for (int i = 0; i < kWidth; i++) x[i] = static_cast<float>(at(i % kDim, t));
        EXPECT_EQ(c.batch({{0, t, t, x}}), t == kSeen - 1);
    }
    for (int i = 0; i < kDim; i++) {
        double want = 0;
        for (const int length : {40, 80, 160, kCells}) {
            double sum = 0;
            for (int offset = 0; offset <= length - kSeen; offset++)
                for (int t = SelfCalibration::kLeftOut; t < kSeen; t++) sum += at(i, t + offset);
            want += sum / (length - kSeen + 1) / (kSeen - SelfCalibration::kLeftOut) / 4;
        }
        for (int h = 0; h < kHeads; h++)
            EXPECT_NEAR(c.store->transform(h).mean()[i], want, 4e-7) << i << ": f32 rows of at most 3, and one rounding more";
    }
}

// Behind rows that came from elsewhere nothing is known of the positions before: the mean is that of what was seen.
TEST(SelfCalibration, MeanOfLaterPositionsStays) {
    Random              random(67);
    Calibrated          c(16);
    std::vector<double> sum(kWidth, 0.0);
    c.calibration.set_rope({{1.0, 0.1, 0.013}, true});
    for (int i = 0; i < 16; i++) {
        const std::vector<float> x = shifted_row(random, 2);
        for (int k = 0; k < kWidth; k++) sum[k] += x[k];
        EXPECT_EQ(c.batch({{0, i, 100 + i, x}}), i == 15);
    }
    for (int i = 0; i < kDim; i++) EXPECT_EQ(c.store->transform(0).mean()[i], static_cast<float>(sum[i] / 16));
}

TEST(SelfCalibration, UnknownPositionsCountAndNanDoesNot) {
    Random     random(63);
    Calibrated c(16);
    for (int i = 0; i < 15; i++) EXPECT_FALSE(c.batch({{0, i, -1, shifted_row(random, 1)}}));
    std::vector<float> bad = shifted_row(random, 1);
    bad[40]                = NAN;
    EXPECT_FALSE(c.batch({{0, 15, -1, bad}}));
    bad[40] = INFINITY;
    EXPECT_FALSE(c.batch({{0, 16, 100, bad}}));
    EXPECT_TRUE(c.batch({{0, 17, 100, shifted_row(random, 1)}}));
    for (int h = 0; h < kHeads; h++)
        for (int i = 0; i < kDim; i++) EXPECT_TRUE(std::isfinite(c.store->transform(h).mean()[i]));
}

// After the mean is known the cache is as if it had been known from the start: rows that were coded without it are made again from what the
// host gave, the last row of a cell, in every stream, whatever batch they came in.
TEST(SelfCalibration, KeptRowsAreCodedFromTheirOriginals) {
    Random                                                random(64);
    Calibrated                                            c(40);
    std::map<std::pair<int, int64_t>, std::vector<float>> last;
    bool                                                  set = false;
    for (int step = 0; !set; step++) {
        ASSERT_LT(step, 100);
        std::vector<Calibrated::Row> batch;
        for (int i = 0; i < 3; i++) {
            Calibrated::Row r{random.below(2), random.below(20), 10, shifted_row(random, 5)};
            if (std::any_of(batch.begin(), batch.end(), [&](const auto& b) { return b.stream == r.stream && b.cell == r.cell; })) continue;
            last[{r.stream, r.cell}] = r.x;
            batch.push_back(std::move(r));
        }
        set = c.batch(batch);
    }
    Calibrated again(0);
    again.store->set_transforms(
        {std::make_shared<const Transform>(c.store->transform(0)), std::make_shared<const Transform>(c.store->transform(1))});
    for (const auto& [at, x] : last) again.batch({{at.first, at.second, 10, x}});
    for (const auto& [at, x] : last)
        EXPECT_EQ(c.bytes(at.first, at.second), again.bytes(at.first, at.second)) << at.first << ", " << at.second;
}

// A row from elsewhere replaces what was observed in its cell; its codes are all there is to make it again from.
TEST(SelfCalibration, RowsFromElsewhere) {
    Random     random(65);
    Calibrated c(32);
    for (int i = 0; i < 10; i++) ASSERT_FALSE(c.batch({{0, i, 10, shifted_row(random, 5)}}));
    const std::vector<float> restored = shifted_row(random, 5);
    for (const int64_t cell : {3, 150}) { // one that was observed, one behind all of them
        for (int h = 0; h < kHeads; h++) ASSERT_EQ(c.store->write(0, h, cell, restored.data() + h * kDim), RowStatus::kOk);
        c.calibration.written(0, cell);
    }
    std::vector<float> decoded(kDim), now(kDim);
    c.store->read(0, 0, 3, decoded.data());
    while (!c.batch({{1, random.below(10), 10, shifted_row(random, 5)}})) {
    }
    ASSERT_NE(c.store->transform(0).mean(), nullptr);
    for (const int64_t cell : {3, 150}) {
        CodedRow want;
        ASSERT_EQ(encode_row(c.store->format(), c.store->transform(0), decoded.data(), want), RowStatus::kOk);
        std::vector<uint8_t> bytes(c.store->format().row_bytes(kDim)), wanted(bytes.size());
        pack_row(c.store->format(), kDim, want, wanted.data());
        c.store->read_canonical(0, 0, cell, bytes.data());
        EXPECT_EQ(bytes, wanted) << cell << ": the restored row, not what the cell held before";
    }
}

TEST(SelfCalibration, ClearKeepsTheMeasurementAndForgetsTheRows) {
    Random              random(66);
    Calibrated          c(20);
    std::vector<double> sum(kWidth, 0.0);
    const auto          row = [&] {
        std::vector<float> x = shifted_row(random, 2);
        for (int k = 0; k < kWidth; k++) sum[k] += x[k];
        return x;
    };
    for (int i = 0; i < 19; i++) ASSERT_FALSE(c.batch({{0, i, 50, row()}}));
    c.store->clear(), c.calibration.clear();
    ASSERT_TRUE(c.batch({{0, 100, 50, row()}}));
    for (int i = 0; i < kDim; i++) EXPECT_EQ(c.store->transform(0).mean()[i], static_cast<float>(sum[i] / 20));
    const std::vector<uint8_t> zero(kHeads * c.store->format().row_bytes(kDim), 0);
    for (int i = 0; i < 19; i++) EXPECT_EQ(c.bytes(0, i), zero) << "emptied cells stay empty";
    EXPECT_NE(c.bytes(0, 100), zero);
}

TEST(SelfCalibration, OffIsDone) {
    EXPECT_TRUE(SelfCalibration(0).done());
    EXPECT_FALSE(SelfCalibration(16).done());
}
