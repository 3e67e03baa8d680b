// sink=, window= and mean= through the C API: attention against the fp64 oracle over the rows that each query should see, and bit for bit
// against the library's parts; rows by cell, removed, copied, saved.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "attention_case.h"
#include "base/half.h"
#include "cache/kv_cache.h"
#include "tightkv/tightkv.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

constexpr int    kLayers = 2, kHeads = 2, kGroup = 2, kDim = 64, kStreams = 2, kCells = 300;
constexpr size_t kToken = size_t{kHeads} * kDim, kQuery = size_t{kHeads} * kGroup * kDim;

struct Destroy {
    void operator()(tkv_cache* c) const { tkv_cache_destroy(c); }
};
using Cache = std::unique_ptr<tkv_cache, Destroy>;

Cache make(const std::string& spec, int64_t cells = kCells) {
    tkv_cache_params p = tkv_cache_params_default();
    p.n_layers = kLayers, p.n_kv_heads = kHeads, p.head_dim_k = p.head_dim_v = kDim, p.n_cells = cells, p.n_streams = kStreams;
    tkv_cache* c = nullptr;
    EXPECT_EQ(tkv_cache_create(spec.c_str(), &p, &c), TKV_OK) << tkv_last_error();
    return Cache(c);
}

// Values that f16 has, a function of where they are written: keys lie around a mean. Kept, as many ask for them again.
const std::vector<float>& row(int layer, tkv_operand op, const tkv_token& t) {
    static std::mutex                             mutex;
    static std::map<uint64_t, std::vector<float>> rows; // whose elements stay where they are
    const auto                                    at = static_cast<uint64_t>(((layer * 2 + op) * kStreams + t.stream) * kCells + t.cell);
    const std::lock_guard                         lock(mutex);
    std::vector<float>&                           x = rows[at];
    if (!x.empty()) return x;
    Random random(at + 1000), around(static_cast<uint64_t>(layer) + 7);
    x                             = gaussian(random, kToken);
    const std::vector<float> mean = gaussian(around, kToken, 2);
    for (size_t i = 0; i < kToken; i++) x[i] = half_to_float(float_to_half(x[i] + (op == TKV_K ? mean[i] : 0)));
    return x;
}

using Attended = std::function<void(int layer)>;

// A batch into all layers; after each, `then`.
void append(tkv_cache* c, const std::vector<tkv_token>& tokens, const Attended& then = {}) {
    ASSERT_EQ(tkv_batch_begin(c, static_cast<int64_t>(tokens.size()), tokens.data()), TKV_OK) << tkv_last_error();
    for (int layer = 0; layer < kLayers; layer++) {
        for (const tkv_operand op : {TKV_K, TKV_V}) {
            std::vector<float> x;
            for (const tkv_token& t : tokens) {
                const std::vector<float> one = row(layer, op, t);
                x.insert(x.end(), one.begin(), one.end());
            }
            ASSERT_EQ(tkv_append(c, layer, op, x.data()), TKV_OK) << tkv_last_error();
        }
        if (then) then(layer);
    }
}
// Tokens [from, to) of every stream; position = cell.
std::vector<tkv_token> tokens(int from, int to, int streams = kStreams) {
    std::vector<tkv_token> t;
    for (int s = 0; s < streams; s++)
        for (int i = from; i < to; i++) t.push_back({s, i, i});
    return t;
}

struct Question {
    std::vector<float>    q;    // [stream][token][head][dim]
    std::vector<uint16_t> mask; // causal, with holes
    int                   n_tokens, n_kv, n_streams;

    Question(int tokens, int kv, int streams = kStreams) : n_tokens(tokens), n_kv(kv), n_streams(streams) {
        Random random(55);
        q = gaussian(random, size_t(streams) * tokens * kQuery);
        for (int s = 0; s < streams; s++)
            for (int t = 0; t < tokens; t++)
                for (int j = 0; j < kv; j++) mask.push_back(j <= kv - tokens + t && random.below(9) ? 0 : kHalfNegInf);
    }
    std::vector<float> ask(const tkv_cache* c, int layer, int threads = 2) const {
        std::vector<float> out(q.size());
        tkv_attention      a = tkv_attention_default();
        a.n_tokens = n_tokens, a.n_heads = kHeads * kGroup, a.n_streams = n_streams, a.n_kv = n_kv, a.scale = 0.125f, a.n_threads = threads;
        a.q = q.data(), a.out = out.data(), a.mask_f16 = mask.data(), a.mask_stride = n_kv;
        EXPECT_EQ(tkv_attend(c, layer, &a), TKV_OK) << tkv_last_error();
        return out;
    }
};

std::vector<float> read(const tkv_cache* c, int layer, tkv_operand op, int stream, int64_t cell, int64_t n = 1) {
    std::vector<float> x(static_cast<size_t>(n) * kToken);
    EXPECT_EQ(tkv_read(c, layer, op, stream, cell, n, x.data()), TKV_OK) << tkv_last_error();
    return x;
}

// Attention in double over the rows a query should see: those of `codes`, a cache without exact rows that was given the same, but where
// exact(stream, cell, query token) says so as they were written. The bound is that of attention_bounds.cpp for f32 paths.
void expect_oracle(const std::vector<float>& got, const Question& question, int layer, const tkv_cache* codes,
                   const std::function<bool(int, int, int)>& exact) {
    const int n = question.n_kv;
    for (int s = 0; s < question.n_streams; s++) {
        const std::vector<float> k = read(codes, layer, TKV_K, s, 0, n), v = read(codes, layer, TKV_V, s, 0, n);
        for (int t = 0; t < question.n_tokens; t++)
            for (int head = 0; head < kHeads * kGroup; head++) {
                const size_t        at = ((size_t(s) * question.n_tokens + t) * kHeads * kGroup + head) * kDim;
                const auto          h  = static_cast<size_t>(head / kGroup) * kDim;
                std::vector<double> q(question.q.begin() + static_cast<long>(at), question.q.begin() + static_cast<long>(at) + kDim);
                std::vector<double> key, value, bias;
                double              largest = 0;
                for (int j = 0; j < n; j++) {
                    const bool         own = exact(s, j, t);
                    const tkv_token    token{s, j, j};
                    const float* const kj = (own ? row(layer, TKV_K, token).data() : k.data() + static_cast<size_t>(j) * kToken) + h;
                    const float* const vj = (own ? row(layer, TKV_V, token).data() : v.data() + static_cast<size_t>(j) * kToken) + h;
                    key.insert(key.end(), kj, kj + kDim), value.insert(value.end(), vj, vj + kDim);
                    bias.push_back(half_to_float(question.mask[(size_t(s) * question.n_tokens + t) * n + j]));
                    double sum = 0;
                    for (int i = 0; i < kDim; i++) sum += std::fabs(q[static_cast<size_t>(i)] * kj[i]);
                    largest = std::max(largest, sum);
                }
                const oracle::Attended want  = oracle::attend(q, key, value, bias, 0.125, 0, nullptr);
                const double           score = (kDim + 4) * 0x1p-24 * 0.125 * 3 * largest; // key, mean, and their difference
                for (int x = 0; x < kDim; x++) {
                    double mass = 0;
                    for (int j = 0; j < n; j++) mass += want.weight[j] * std::fabs(value[size_t(j) * kDim + x]);
                    const double bound = 2e-6 + mass * (2 * 3e-6 + std::expm1(2 * score) + 2 * kDim * 0x1p-24);
                    ASSERT_NEAR(got[at + static_cast<size_t>(x)], want.out[x], bound)
                        << "layer " << layer << ", stream " << s << ", token " << t << ", head " << head << ", dim " << x;
                }
            }
    }
}

// Exact rows by the words of the manual, where nothing is written twice: positions below `sink`, and `window` rows up to the query's own
// that it sees, of those that the table has: window + 3, and all of a large batch while its layer is the last one.
auto newest(int sink, int window, const Question& q, bool large) {
    return [=, &q](int s, int cell, int t) {
        const int       own  = q.n_kv - q.n_tokens + t;
        const uint16_t* mask = q.mask.data() + (size_t(s) * q.n_tokens + t) * q.n_kv;
        if (cell < sink) return true;
        if (cell > own || cell < q.n_kv - (large ? q.n_tokens : 0) - window - 3) return false;
        int newer = 0;
        for (int j = std::max(cell + 1, sink); j <= own; j++) newer += mask[j] == 0;
        return newer < window;
    };
}

std::vector<uint8_t> saved(const tkv_cache* c, int stream, int64_t n) {
    std::vector<uint8_t> bytes(tkv_state_bytes(c, n));
    EXPECT_EQ(tkv_state_save(c, stream, n, bytes.data(), bytes.size()), TKV_OK) << tkv_last_error();
    return bytes;
}

void expect_error(int code, const char* says) {
    EXPECT_EQ(code, TKV_INVALID_ARGUMENT);
    EXPECT_NE(std::string(tkv_last_error()).find(says), std::string::npos) << tkv_last_error();
}

struct Scalar { // as the oracle's bound is that of f32
    Scalar() { EXPECT_TRUE(set_isa("scalar").ok()); }
    IsaRestorer restore;
};

} // namespace

// One query and batches on both sides of the limits, in several streams, with and without a mean.
TEST(CApiExact, AttendMeetsTheOracle) {
    for (const char* codes : {"turbo3", "turbo3t:mean=64", "k=turbo4:v=f16:mean=32"})
        for (const auto& [sink, window] : {std::pair{4, 0}, {0, 20}, {4, 32}})
            for (const int last : {1, 4, 5, 40}) {
                const int   n     = 150;
                const Cache exact = make(std::string(codes) + ":sink=" + std::to_string(sink) + ":window=" + std::to_string(window)),
                            plain = make(codes);
                for (tkv_cache* c : {exact.get(), plain.get()})
                    for (int at = 0; at < n - last; at += 37) append(c, tokens(at, std::min(at + 37, n - last)));
                append(plain.get(), tokens(n - last, n));
                const Question question(last, n);
                append(exact.get(), tokens(n - last, n), [&](int layer) {
                    SCOPED_TRACE(std::string(codes) + ", sink " + std::to_string(sink) + ", window " + std::to_string(window) + ", batch " +
                                 std::to_string(last));
                    const Scalar scalar; // after the rows are written: encoders give the same bits on every level
                    expect_oracle(question.ask(exact.get(), layer), question, layer, plain.get(), newest(sink, window, question, last > 4));
                });
                if (HasFatalFailure()) return;
            }
}

// A power check of the above: one row more or less in the window, or the sinks lost, is seen.
TEST(CApiExact, TheOracleSeesOneRow) {
    const Scalar scalar;
    const Cache  exact = make("turbo2:sink=4:window=10"), plain = make("turbo2");
    for (tkv_cache* c : {exact.get(), plain.get()}) append(c, tokens(0, 60));
    const Question           question(1, 60);
    const std::vector<float> got = question.ask(exact.get(), 1);
    expect_oracle(got, question, 1, plain.get(), newest(4, 10, question, false));
    const auto size = [&](int sink, int window) {
        const Cache other = make("turbo2:sink=" + std::to_string(sink) + ":window=" + std::to_string(window));
        append(other.get(), tokens(0, 60));
        const std::vector<float> out = question.ask(other.get(), 1);
        double                   sum = 0;
        for (size_t i = 0; i < out.size(); i++) sum = std::max(sum, std::fabs(double(out[i]) - got[i]));
        return sum;
    };
    EXPECT_EQ(size(4, 10), 0);
    EXPECT_GT(size(3, 10), 1e-3);
    EXPECT_GT(size(4, 9), 1e-3);
}

// The adapter puts the same parts together: on every level the same bits.
TEST(CApiExact, SameBitsAsTheParts) {
    IsaRestorer restore;
    for (const std::string& isa : isa_names())
        for (const int last : {1, 3, 30}) {
            ASSERT_TRUE(set_isa(isa).ok());
            const int                  n = 130;
            const Cache                c = make("k=turbo4:v=turbo3:sink=2:window=24");
            const StoreShape           shape{kStreams, kHeads, kDim, kCells};
            std::unique_ptr<TileStore> k, v;
            ASSERT_TRUE(TileStore::create(*find_format("turbo4"), Operand::K, shape, k).ok());
            ASSERT_TRUE(TileStore::create(*find_format("turbo3"), Operand::V, shape, v).ok());
            ExactTables    tables(2, 24, shape, shape);
            const Question question(last, n);
            const auto     parts = [&](const std::vector<tkv_token>& batch) {
                std::vector<ExactLedger::Token> t;
                std::vector<float>              x;
                for (const tkv_token& b : batch) t.push_back({b.stream, b.cell, b.position});
                for (const tkv_token& b : batch)
                    for (int h = 0; h < kHeads; h++) {
                        (void)k->write(b.stream, h, b.cell, row(1, TKV_K, b).data() + h * kDim);
                        (void)v->write(b.stream, h, b.cell, row(1, TKV_V, b).data() + h * kDim);
                    }
                tables.write(t, [&](const ExactLedger::Token& at, Operand op, int h) {
                    x = row(1, op == Operand::K ? TKV_K : TKV_V, {at.stream, at.cell, at.position});
                    return x.data() + h * kDim;
                });
            };
            for (const auto& [from, to] : {std::pair{0, 50}, {50, n - last}, {n - last, n}}) {
                parts(tokens(from, to));
                std::vector<float> got;
                append(c.get(), tokens(from, to), [&](int layer) {
                    if (layer == 1 && to == n) got = question.ask(c.get(), 1);
                });
                if (to < n) continue;
                std::vector<float> want(question.q.size());
                AttentionArgs      a;
                a.k = k.get(), a.v = v.get(), a.n_streams = kStreams, a.n_kv_heads = kHeads, a.n_heads = kHeads * kGroup;
                a.n_tokens = last, a.n_kv = n, a.q = question.q.data(), a.out = want.data(), a.scale = 0.125f, a.sparse_v = kDefaultSparseV;
                const size_t head = sizeof(float) * kDim, token = head * kHeads * kGroup;
                a.q_strides = a.out_strides = {token, head, token * static_cast<size_t>(last)};
                a.mask_type = MaskType::kF16, a.mask = question.mask.data();
                a.mask_strides = {size_t{2} * n, 0, size_t{2} * n * static_cast<size_t>(last)};
                tables.attach(a);
                AttentionJob job;
                ASSERT_TRUE(job.prepare(a, 2).ok());
                job.run();
                EXPECT_EQ(got, want) << isa << ", batch of " << last;
            }
        }
}

// A batch that was appended to all layers before anyone asks: the rows that the tables hold are exact, for the queries that may see them.
TEST(CApiExact, AttendAfterOtherLayers) {
    const Scalar scalar;
    const int    n = 100, last = 30, window = 12;
    const Cache  exact = make("turbo3:window=" + std::to_string(window)), plain = make("turbo3");
    for (tkv_cache* c : {exact.get(), plain.get()}) append(c, tokens(0, n - last)), append(c, tokens(n - last, n));
    const Question question(last, n);
    for (int layer = 0; layer < kLayers; layer++) // the last layer's rows are still there
        expect_oracle(question.ask(exact.get(), layer), question, layer, plain.get(), newest(0, window, question, layer == kLayers - 1));
}

TEST(CApiExact, RowsReadBackAndBits) {
    const Cache c = make("turbo2:sink=2:window=5"), plain = make("turbo2");
    append(c.get(), tokens(0, 40)), append(plain.get(), tokens(0, 40));
    for (int s = 0; s < kStreams; s++)
        for (int cell = 0; cell < 40; cell++) {
            const bool kept = cell < 2 || cell >= 40 - 5 - 3;
            EXPECT_EQ(read(c.get(), 1, TKV_K, s, cell) == row(1, TKV_K, {s, cell, cell}), kept) << cell;
            if (!kept) {
                EXPECT_EQ(read(c.get(), 1, TKV_V, s, cell), read(plain.get(), 1, TKV_V, s, cell)) << cell;
            }
        }
    // Tables of 2 + 5 + 3 rows.
    EXPECT_EQ(tkv_cache_bytes(c.get()) - tkv_cache_bytes(plain.get()), size_t{kLayers * 2 * kStreams * kHeads * 10 * kDim * 2});
    EXPECT_NEAR(tkv_cache_bits_per_value(c.get()) - tkv_cache_bits_per_value(plain.get()), 16.0 * 10 / kCells, 1e-9);
}

// Rows that are changed in place stay exact, also those of a batch that has a table of its own; other cells have codes only.
TEST(CApiExact, RowsByCell) {
    const Scalar scalar;
    const Cache  exact = make("turbo3:sink=2:window=6"), plain = make("turbo3");
    const auto   other = [](int layer, tkv_operand op) { return row(layer, op, {1, 250, 0}); };
    for (tkv_cache* c : {exact.get(), plain.get()}) {
        append(c, tokens(0, 50), [&](int layer) {
            for (const tkv_operand op : {TKV_K, TKV_V})
                for (const int64_t cell : {int64_t{0}, int64_t{20}, int64_t{49}})
                    EXPECT_EQ(tkv_write(c, layer, op, 0, cell, 1, other(layer, op).data(), nullptr), TKV_OK);
        });
    }
    for (const tkv_operand op : {TKV_K, TKV_V}) {
        EXPECT_EQ(read(exact.get(), 1, op, 0, 0), other(1, op));
        EXPECT_EQ(read(exact.get(), 1, op, 0, 49), other(1, op));
        EXPECT_EQ(read(exact.get(), 1, op, 0, 20), read(plain.get(), 1, op, 0, 20));
        EXPECT_NE(read(exact.get(), 1, op, 0, 20), other(1, op));
    }
    // What attention finds is what is read: the same rows as codes of f16 say it again.
    const Cache whole = make("f16");
    for (const tkv_operand op : {TKV_K, TKV_V})
        for (int cell = 0; cell < 50; cell++)
            EXPECT_EQ(tkv_write(whole.get(), 1, op, 0, cell, 1,
                                read(cell < 2 || cell >= 44 ? exact.get() : plain.get(), 1, op, 0, cell).data(), nullptr),
                      TKV_OK);
    const Question           question(1, 50, 1);
    const std::vector<float> got = question.ask(exact.get(), 1), want = question.ask(whole.get(), 1);
    for (size_t i = 0; i < got.size(); i++) ASSERT_NEAR(got[i], want[i], 2e-3) << i; // rows of codes went through f16: 2^-11
}

TEST(CApiExact, RemovedCellsAreFree) {
    const Cache c = make("turbo3:sink=2:window=4:mean=16");
    append(c.get(), tokens(0, 12)); // below the first look: rows are kept aside
    ASSERT_EQ(tkv_remove(c.get(), 0, 0, 1), TKV_OK);
    ASSERT_EQ(tkv_remove(c.get(), 0, 11, 1), TKV_OK);
    append(c.get(), tokens(12, 30)); // a mean, and all rows again
    const std::vector<float> zeros(kToken, 0.0f);
    for (const int cell : {0, 11})
        for (const tkv_operand op : {TKV_K, TKV_V}) {
            EXPECT_EQ(read(c.get(), 0, op, 0, cell), read(c.get(), 0, op, 0, 200)) << "as one that was never written";
            EXPECT_NE(read(c.get(), 0, op, 1, cell), zeros) << "the other stream's stay";
        }
    EXPECT_EQ(read(c.get(), 0, TKV_K, 0, 1), row(0, TKV_K, {0, 1, 1})) << "the other sink stays";
    // The place of a sink that was removed is taken by another sequence's first token, without pushing the second out.
    append(c.get(), {{0, 100, 0}});
    EXPECT_EQ(read(c.get(), 0, TKV_K, 0, 100), row(0, TKV_K, {0, 100, 100}));
    append(c.get(), tokens(101, 120));
    EXPECT_EQ(read(c.get(), 0, TKV_K, 0, 100), row(0, TKV_K, {0, 100, 100}));
    EXPECT_EQ(read(c.get(), 0, TKV_K, 0, 1), row(0, TKV_K, {0, 1, 1}));
}

TEST(CApiExact, CopiesTakeExactRowsAlong) {
    const Cache c = make("turbo3:sink=3:window=8:mean=32");
    append(c.get(), tokens(0, 60, 1));
    ASSERT_EQ(tkv_copy(c.get(), 0, 1, 0, 60), TKV_OK);
    for (int layer = 0; layer < kLayers; layer++)
        for (const tkv_operand op : {TKV_K, TKV_V}) EXPECT_EQ(read(c.get(), layer, op, 0, 0, 60), read(c.get(), layer, op, 1, 0, 60));
    Question question(1, 60);
    std::copy_n(question.q.begin(), kQuery, question.q.begin() + kQuery); // the same in both streams
    std::copy_n(question.mask.begin(), 60, question.mask.begin() + 60);
    const std::vector<float> out = question.ask(c.get(), 1);
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + kQuery, out.begin() + kQuery));
}

// A state into a new cache: the same bits of attention now, and after more rows; saved again the same bytes.
TEST(CApiExact, StatesGiveTheSameBits) {
    for (const char* spec :
         {"turbo3:sink=4:window=20", "turbo3t:mean=64", "auto", "turbo3:mean=4096:sink=1", "turbo4:first=f16x1:window=3"})
        for (const int n : {1, 10, 90}) {
            const Cache a = make(spec), b = make(spec);
            append(a.get(), tokens(0, n));
            for (int s = 0; s < kStreams; s++) {
                const std::vector<uint8_t> bytes = saved(a.get(), s, n);
                int64_t                    got   = 0;
                ASSERT_EQ(tkv_state_load(b.get(), s, bytes.data(), bytes.size(), &got), TKV_OK) << tkv_last_error();
                EXPECT_EQ(got, n);
                EXPECT_EQ(saved(b.get(), s, n), bytes) << spec << ", " << n;
            }
            ASSERT_EQ(tkv_batch_begin(a.get(), 0, nullptr), TKV_OK); // the last token's window in both
            const Question question(1, n);
            for (int layer = 0; layer < kLayers; layer++) {
                EXPECT_EQ(question.ask(a.get(), layer), question.ask(b.get(), layer)) << spec << ", " << n;
                for (const tkv_operand op : {TKV_K, TKV_V})
                    EXPECT_EQ(read(a.get(), layer, op, 1, 0, n), read(b.get(), layer, op, 1, 0, n)) << spec << ", " << n;
            }
            if (std::string(spec).find("mean=4096") != std::string::npos || (n < 90 && std::string(spec).find("mean") != std::string::npos))
                continue; // still measuring: kept rows do not travel
            const Question more(3, n + 3);
            for (const Cache* c : {&a, &b}) append(c->get(), tokens(n, n + 3));
            EXPECT_EQ(more.ask(a.get(), 1), more.ask(b.get(), 1)) << spec << ", " << n;
        }
}

// A cache with a mean of its own codes the keys of the state again: close to what they were, not the same.
TEST(CApiExact, StatesUnderAnotherMean) {
    const Cache a = make("turbo8:mean=16"), b = make("turbo8:mean=16");
    append(a.get(), tokens(0, 40)), append(b.get(), tokens(100, 180));
    const std::vector<uint8_t> bytes = saved(a.get(), 0, 40);
    ASSERT_EQ(tkv_state_load(b.get(), 1, bytes.data(), bytes.size(), nullptr), TKV_OK) << tkv_last_error();
    const std::vector<float> want = read(a.get(), 0, TKV_K, 0, 0, 40), got = read(b.get(), 0, TKV_K, 1, 0, 40);
    EXPECT_NE(want, got);
    double off = 0, size = 0;
    for (size_t i = 0; i < want.size(); i++) off += std::pow(want[i] - got[i], 2), size += std::pow(want[i], 2);
    EXPECT_LT(std::sqrt(off / size), 0.01); // turbo8: 0.7 % of what is left without the mean
    EXPECT_EQ(read(a.get(), 0, TKV_V, 0, 0, 40), read(b.get(), 0, TKV_V, 1, 0, 40));
}

// Any bit changed, cut, or extended: refused, and nothing changes.
TEST(CApiExact, DamagedStatesAreRefused) {
    const Cache a = make("turbo2:sink=1:window=2:mean=16"), b = make("turbo2:sink=1:window=2:mean=16");
    append(a.get(), tokens(0, 20)), append(b.get(), tokens(30, 50));
    const std::vector<uint8_t> good = saved(a.get(), 0, 20), before = saved(b.get(), 0, 60);
    const auto                 checksum = [](std::vector<uint8_t> bytes) {
        uint64_t sum = 0xcbf29ce484222325ull; // FNV-1a 64
        for (size_t i = 0; i + 8 < bytes.size(); i++) sum = (sum ^ bytes[i]) * 0x100000001b3ull;
        for (size_t i = 0; i < 8; i++) bytes[bytes.size() - 8 + i] = static_cast<uint8_t>(sum >> (8 * i));
        return bytes;
    };
    const auto refused = [&](const std::vector<uint8_t>& bytes) {
        const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size() + 1]);
        std::copy(bytes.begin(), bytes.end(), exact.get());
        return tkv_state_load(b.get(), 0, exact.get(), bytes.size(), nullptr) == TKV_CORRUPT_DATA && *tkv_last_error();
    };
    for (size_t n = 0; n < good.size(); n += n < 200 || n + 200 > good.size() ? 1 : 41)
        ASSERT_TRUE(refused({good.begin(), good.begin() + static_cast<long>(n)})) << n;
    std::vector<uint8_t> bytes = good;
    bytes.push_back(0);
    EXPECT_TRUE(refused(bytes));
    for (size_t i = 0; i < good.size(); i += 5) {
        bytes = good;
        bytes[i] ^= static_cast<uint8_t>(1u << i % 8);
        ASSERT_TRUE(refused(bytes)) << i;
    }
    // Under a right checksum: the section of exact rows is at the end, the means before it.
    const size_t exact = size_t{kLayers} * 2 * kHeads * kDim * 2, end = good.size() - 8 - 6 * exact; // of the six places
    const size_t means = end - 6 * 9 - 4 - size_t{kLayers} * kHeads * (1 + 4 * kDim);
    const auto   with  = [&](size_t at, std::vector<uint8_t> value) {
        std::vector<uint8_t> changed = good;
        std::copy(value.begin(), value.end(), changed.begin() + static_cast<long>(at));
        return checksum(changed);
    };
    EXPECT_TRUE(refused(with(end - 1, {3}))) << "a kind of row that there is not";
    EXPECT_TRUE(refused(with(end - 9, {20}))) << "a cell that the state does not have";
    EXPECT_TRUE(refused(with(end - 1, {0}))) << "nobody's place with a cell";
    EXPECT_TRUE(refused(with(end - 2 * 9, {good[end - 9]}))) << "a cell twice";
    EXPECT_TRUE(refused(with(end - 6 * 9 - 4, {2}))) << "fewer places than rows";
    EXPECT_TRUE(refused(with(end - 6 * 9 - 4, {0xff, 0xff, 0xff, 0xff}))) << "very many places";
    EXPECT_TRUE(refused(with(end, {0, 0x7c}))) << "an exact row with Inf";
    EXPECT_TRUE(refused(with(means, {4}))) << "a kind of mean that there is not";
    EXPECT_TRUE(refused(with(means + 1, {0, 0, 0xc0, 0x7f}))) << "a mean with NaN";
    EXPECT_EQ(saved(b.get(), 0, 60), before);
    EXPECT_FALSE(refused(good)) << tkv_last_error();
}

// Caches of other lengths have other numbers of places.
TEST(CApiExact, StatesOfLongerCaches) {
    const Cache a = make("turbo3:sink=4:window=8", 5000), b = make("turbo3:sink=4:window=8", 100), tiny = make("turbo3:sink=4:window=8", 6);
    append(a.get(), tokens(0, 50, 1));
    for (const auto& [to, n] : {std::pair{b.get(), 50}, {tiny.get(), 6}}) {
        const std::vector<uint8_t> bytes = saved(a.get(), 0, n);
        ASSERT_EQ(tkv_state_load(to, 1, bytes.data(), bytes.size(), nullptr), TKV_OK) << tkv_last_error();
        EXPECT_EQ(read(to, 1, TKV_K, 1, 0, n), read(a.get(), 1, TKV_K, 0, 0, n));
    }
}

TEST(CApiExact, BatchesRefuse) {
    const Cache        c = make("turbo3:sink=2:window=8:mean=16");
    std::vector<float> x(2 * kToken, 1.0f);
    tkv_token          t[2] = {{0, 5, 0}, {1, 5, 0}};
    expect_error(tkv_append(c.get(), 0, TKV_K, x.data()), "no batch");
    expect_error(tkv_batch_begin(nullptr, 2, t), "NULL");
    expect_error(tkv_batch_begin(c.get(), 2, nullptr), "NULL");
    expect_error(tkv_batch_begin(c.get(), -1, t), "negative");
    for (const tkv_token& bad :
         {tkv_token{2, 0, 0}, {-1, 0, 0}, {0, kCells, 0}, {0, -1, 0}, {0, INT64_MAX, 0}, {0, INT64_MIN, 0}, {0, 0, -2}}) {
        t[1] = bad;
        expect_error(tkv_batch_begin(c.get(), 2, t), "token 1");
    }
    t[1] = t[0];
    expect_error(tkv_batch_begin(c.get(), 2, t), "twice");
    expect_error(tkv_append(c.get(), 0, TKV_K, x.data()), "no batch");
    t[1] = {0, 6, -1};
    ASSERT_EQ(tkv_batch_begin(c.get(), 2, t), TKV_OK);
    expect_error(tkv_append(nullptr, 0, TKV_K, x.data()), "NULL");
    expect_error(tkv_append(c.get(), 0, TKV_K, nullptr), "NULL");
    expect_error(tkv_append(c.get(), kLayers, TKV_K, x.data()), "layer");
    expect_error(tkv_append(c.get(), 0, 5, x.data()), "TKV_K");
    ASSERT_EQ(tkv_append(c.get(), 0, TKV_K, x.data()), TKV_OK);
    expect_error(tkv_append(c.get(), 0, TKV_K, x.data()), "once");
    ASSERT_EQ(tkv_append(c.get(), 0, TKV_V, x.data()), TKV_OK);
    expect_error(tkv_remove(c.get(), 2, 0, 1), "stream");
    expect_error(tkv_remove(c.get(), 0, kCells, 1), "cells");
    expect_error(tkv_remove(nullptr, 0, 0, 1), "NULL");
    for (const auto& end : std::vector<std::function<int()>>{
             [&] { return tkv_remove(c.get(), 0, 0, 1); }, [&] { return tkv_copy(c.get(), 0, 1, 0, 1); },
             [&] { return tkv_cache_clear(c.get()); }, [&] { return tkv_batch_begin(c.get(), 0, nullptr); }}) {
        ASSERT_EQ(tkv_batch_begin(c.get(), 2, t), TKV_OK);
        ASSERT_EQ(end(), TKV_OK);
        expect_error(tkv_append(c.get(), 0, TKV_K, x.data()), "no batch");
    }
    // Arguments of attention are looked at before masks are made of them.
    std::vector<float> q(kQuery), out(kQuery);
    tkv_attention      a = tkv_attention_default();
    a.n_tokens = 1, a.n_heads = kHeads * kGroup, a.q = q.data(), a.out = out.data();
    for (const int64_t n_kv : {int64_t{-1}, int64_t{kCells} + 1, INT64_MAX}) {
        a.n_kv = n_kv;
        EXPECT_EQ(tkv_attend(c.get(), 0, &a), TKV_INVALID_ARGUMENT);
    }
    a.n_kv = 10, a.stream = kStreams;
    EXPECT_EQ(tkv_attend(c.get(), 0, &a), TKV_INVALID_ARGUMENT);
}

// NaN and Inf are refused and counted; what f16 cannot hold is held at its largest value.
TEST(CApiExact, RowsOutOfRange) {
    const Cache        c = make("turbo8:window=4");
    std::vector<float> x(kToken, 1.0f);
    x[3] = 1e6f, x[kDim + 5] = NAN;
    const tkv_token t{0, 9, 0};
    ASSERT_EQ(tkv_batch_begin(c.get(), 1, &t), TKV_OK);
    ASSERT_EQ(tkv_append(c.get(), 0, TKV_K, x.data()), TKV_OK);
    EXPECT_EQ(tkv_cache_refused_rows(c.get()), 1);
    const std::vector<float> back = read(c.get(), 0, TKV_K, 0, 9);
    EXPECT_EQ(back[3], 65504.0f);
    EXPECT_EQ(back[0], 1.0f);
    for (int i = kDim; i < 2 * kDim; i++) EXPECT_EQ(back[static_cast<size_t>(i)], 0.0f);
}

// What the manual allows at the same time: K and V of a layer, then attention from several threads.
TEST(CApiExact, ThreadsAtTheSameTime) {
    const Cache c = make("turbo3:sink=2:window=9:mean=32"), alone = make("turbo3:sink=2:window=9:mean=32");
    append(alone.get(), tokens(0, 50));
    const std::vector<tkv_token> batch = tokens(0, 50);
    const Question               question(50, 50);
    const std::vector<float>     want = question.ask(alone.get(), kLayers - 1);
    ASSERT_EQ(tkv_batch_begin(c.get(), static_cast<int64_t>(batch.size()), batch.data()), TKV_OK);
    std::atomic<int> wrong{0};
    for (int layer = 0; layer < kLayers; layer++) {
        std::vector<std::thread> threads;
        for (const tkv_operand op : {TKV_K, TKV_V})
            threads.emplace_back([&, layer, op] {
                std::vector<float> x;
                for (const tkv_token& t : batch) {
                    const std::vector<float> one = row(layer, op, t);
                    x.insert(x.end(), one.begin(), one.end());
                }
                wrong += tkv_append(c.get(), layer, op, x.data()) != TKV_OK;
            });
        for (std::thread& t : threads) t.join();
    }
    std::vector<std::thread> askers;
    for (int i = 0; i < 3; i++) askers.emplace_back([&] { wrong += question.ask(c.get(), kLayers - 1) != want; });
    for (std::thread& t : askers) t.join();
    EXPECT_EQ(wrong, 0);
}

// Every specification takes batches: rows as tkv_write writes them.
TEST(CApiExact, BatchesWithoutNeed) {
    const Cache a = make("k=turbo4:v=turbo3"), b = make("k=turbo4:v=turbo3");
    append(a.get(), tokens(0, 20));
    for (int layer = 0; layer < kLayers; layer++)
        for (const tkv_operand op : {TKV_K, TKV_V})
            for (const tkv_token& t : tokens(0, 20))
                ASSERT_EQ(tkv_write(b.get(), layer, op, t.stream, t.cell, 1, row(layer, op, t).data(), nullptr), TKV_OK);
    for (int s = 0; s < kStreams; s++) EXPECT_EQ(saved(a.get(), s, 20), saved(b.get(), s, 20));
}

TEST(CApiExact, LongLedgersAreRefused) {
    tkv_cache_params p = tkv_cache_params_default();
    p.n_layers = p.n_kv_heads = 1, p.head_dim_k = p.head_dim_v = 32, p.n_cells = INT32_MAX - 63;
    tkv_cache* c = nullptr;
    EXPECT_EQ(tkv_cache_create("turbo2:window=4", &p, &c), TKV_UNSUPPORTED);
    EXPECT_NE(std::string(tkv_last_error()).find("268435456"), std::string::npos) << tkv_last_error();
}
