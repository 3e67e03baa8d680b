// The C API from C++: wrong arguments of every kind, saved states whole and damaged, results against the C++ classes.
#include <gtest/gtest.h>

#include <atomic>
#include <climits>
#include <cstring>
#include <memory>
#include <thread>

#include "cache/read_path.h"
#include "test_data.h"
#include "tightkv/tightkv.h"

using namespace tightkv::test;

namespace {

struct Destroy {
    void operator()(tkv_cache* c) const { tkv_cache_destroy(c); }
};
using Cache = std::unique_ptr<tkv_cache, Destroy>;

tkv_cache_params shape(int n_layers = 2, int n_heads = 2, int dk = 64, int dv = 96, int64_t cells = 130, int streams = 2) {
    tkv_cache_params p = tkv_cache_params_default();
    p.n_layers = n_layers, p.n_kv_heads = n_heads, p.head_dim_k = dk, p.head_dim_v = dv, p.n_cells = cells, p.n_streams = streams;
    return p;
}

Cache make(const char* spec = "k=turbo4:v=turbo3:first=f16x1", const tkv_cache_params& p = shape()) {
    tkv_cache* c = nullptr;
    EXPECT_EQ(tkv_cache_create(spec, &p, &c), TKV_OK) << tkv_last_error();
    return Cache(c);
}

void fill(tkv_cache* c, const tkv_cache_params& p, uint64_t seed, int64_t n) {
    Random random(seed);
    for (int layer = 0; layer < p.n_layers; layer++)
        for (int s = 0; s < p.n_streams; s++) {
            ASSERT_EQ(tkv_write(c, layer, TKV_K, s, 0, n, gaussian(random, size_t(n) * p.n_kv_heads * p.head_dim_k).data(), nullptr),
                      TKV_OK);
            ASSERT_EQ(tkv_write(c, layer, TKV_V, s, 0, n, gaussian(random, size_t(n) * p.n_kv_heads * p.head_dim_v).data(), nullptr),
                      TKV_OK);
        }
}

std::vector<float> everything(const tkv_cache* c, const tkv_cache_params& p, int stream) {
    std::vector<float> out;
    for (int layer = 0; layer < p.n_layers; layer++)
        for (const tkv_operand op : {TKV_K, TKV_V}) {
            std::vector<float> x(size_t(p.n_cells) * p.n_kv_heads * (op == TKV_K ? p.head_dim_k : p.head_dim_v));
            EXPECT_EQ(tkv_read(c, layer, op, stream, 0, p.n_cells, x.data()), TKV_OK);
            out.insert(out.end(), x.begin(), x.end());
        }
    return out;
}

std::vector<uint8_t> saved(const tkv_cache* c, int stream, int64_t n) {
    std::vector<uint8_t> bytes(tkv_state_bytes(c, n));
    EXPECT_EQ(tkv_state_save(c, stream, n, bytes.data(), bytes.size()), TKV_OK) << tkv_last_error();
    return bytes;
}

void expect_error(int code, int want, const char* says) {
    EXPECT_EQ(code, want);
    EXPECT_NE(std::string(tkv_last_error()).find(says), std::string::npos) << tkv_last_error();
}

} // namespace

TEST(CApi, CreateRefuses) {
    tkv_cache* const untouched = reinterpret_cast<tkv_cache*>(uintptr_t{64});
    tkv_cache*       c         = untouched;
    tkv_cache_params p         = shape();
    expect_error(tkv_cache_create(nullptr, &p, &c), TKV_INVALID_ARGUMENT, "NULL");
    expect_error(tkv_cache_create("turbo4", nullptr, &c), TKV_INVALID_ARGUMENT, "NULL");
    expect_error(tkv_cache_create("turbo4", &p, nullptr), TKV_INVALID_ARGUMENT, "NULL");
    expect_error(tkv_cache_create("turbo5", &p, &c), TKV_INVALID_ARGUMENT, "position 1");
    expect_error(tkv_cache_create("turbo4:profile=auto", &p, &c), TKV_UNSUPPORTED, "needs the queries");
    p = shape(2, 2, 80, 64);
    expect_error(tkv_cache_create("turbo4", &p, &c), TKV_UNSUPPORTED, "80");
    p = shape(2, 2, 64, 2048);
    expect_error(tkv_cache_create("turbo4", &p, &c), TKV_UNSUPPORTED, "2048");
    for (const tkv_cache_params& bad : {shape(0), shape(-1), shape(1, 0), shape(1, 1, 64, 64, 0), shape(1, 1, 64, 64, -3),
                                        shape(1, 1, 64, 64, 10, 0), shape(1, 1, 64, 64, INT64_MAX)}) {
        EXPECT_EQ(tkv_cache_create("turbo4", &bad, &c), TKV_INVALID_ARGUMENT);
        EXPECT_STRNE(tkv_last_error(), "");
    }
    EXPECT_EQ(c, untouched) << "the cache is set on success only";
}

// Counts whose product does not fit into memory, or not even into 64 bits, are refused and never become a small cache.
TEST(CApi, CreateRefusesWhatNoMemoryHolds) {
    for (const tkv_cache_params& p : {shape(1, INT_MAX, 1024, 1024, INT_MAX, INT_MAX), shape(1, 1 << 20, 1024, 1024, INT_MAX, 1 << 20),
                                      shape(1, 1 << 10, 1024, 1024, 1 << 20, 1 << 17)}) {
        tkv_cache* c = nullptr;
        EXPECT_NE(tkv_cache_create("f16", &p, &c), TKV_OK)
            << tkv_cache_bytes(c) << " bytes for " << p.n_kv_heads << " heads, " << p.n_streams << " streams";
        tkv_cache_destroy(c);
    }
}

TEST(CApi, RowAccessRefuses) {
    const Cache        c = make();
    std::vector<float> x(130 * 2 * 96, 1.0f);
    expect_error(tkv_write(nullptr, 0, TKV_K, 0, 0, 1, x.data(), nullptr), TKV_INVALID_ARGUMENT, "NULL");
    expect_error(tkv_write(c.get(), 2, TKV_K, 0, 0, 1, x.data(), nullptr), TKV_INVALID_ARGUMENT, "layer 2");
    expect_error(tkv_write(c.get(), -1, TKV_K, 0, 0, 1, x.data(), nullptr), TKV_INVALID_ARGUMENT, "layer -1");
    expect_error(tkv_write(c.get(), 0, TKV_K, 2, 0, 1, x.data(), nullptr), TKV_INVALID_ARGUMENT, "stream 2");
    for (const auto& [first, n] :
         {std::pair<int64_t, int64_t>{-1, 1}, {130, 1}, {0, 131}, {129, 2}, {0, -1}, {INT64_MAX, 1}, {1, INT64_MAX}, {INT64_MIN, 1}}) {
        EXPECT_EQ(tkv_write(c.get(), 0, TKV_K, 0, first, n, x.data(), nullptr), TKV_INVALID_ARGUMENT) << first << ", " << n;
        EXPECT_EQ(tkv_read(c.get(), 0, TKV_K, 0, first, n, x.data()), TKV_INVALID_ARGUMENT) << first << ", " << n;
        EXPECT_EQ(tkv_copy(c.get(), 0, 1, first, n), TKV_INVALID_ARGUMENT) << first << ", " << n;
    }
    EXPECT_EQ(tkv_write(c.get(), 0, TKV_K, 0, 0, 1, nullptr, nullptr), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_read(c.get(), 0, TKV_K, 0, 0, 1, nullptr), TKV_INVALID_ARGUMENT);
    const std::vector<float> before  = everything(c.get(), shape(), 0);
    const int64_t            cells[] = {3, 4, 130};
    expect_error(tkv_write(c.get(), 0, TKV_K, 0, 0, 3, x.data(), cells), TKV_INVALID_ARGUMENT, "cells");
    EXPECT_EQ(everything(c.get(), shape(), 0), before) << "nothing is written when a cell is outside";
    EXPECT_EQ(tkv_write(c.get(), 0, TKV_K, 0, 130, 0, nullptr, nullptr), TKV_OK) << "no rows at the end are fine";
}

TEST(CApi, ScatteredCells) {
    const Cache              c = make();
    Random                   random(81);
    const std::vector<float> x       = gaussian(random, 3 * 2 * 64);
    const int64_t            cells[] = {129, 0, 64};
    ASSERT_EQ(tkv_write(c.get(), 1, TKV_K, 1, 0, 3, x.data(), cells), TKV_OK);
    std::vector<float> straight(3 * 2 * 64), one(2 * 64);
    ASSERT_EQ(tkv_write(c.get(), 1, TKV_K, 0, 10, 3, x.data(), nullptr), TKV_OK);
    ASSERT_EQ(tkv_read(c.get(), 1, TKV_K, 0, 10, 3, straight.data()), TKV_OK);
    for (int i = 0; i < 3; i++) {
        ASSERT_EQ(tkv_read(c.get(), 1, TKV_K, 1, cells[i], 1, one.data()), TKV_OK);
        EXPECT_EQ(std::memcmp(one.data(), straight.data() + i * 128, 128 * sizeof(float)), 0) << i;
    }
}

// "A row that holds NaN or Inf is refused: stored as zeros and counted": in every format, f16 too, and per KV head.
TEST(CApi, RefusedRowsAreCounted) {
    for (const char* spec : {"turbo2", "turbo3", "turbo4", "turbo8", "f16", "turbo2t", "turbo3t", "turbo4t"}) {
        const Cache        c = make(spec);
        std::vector<float> x(2 * 64, 1.0f), back(2 * 64);
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
            x[64 + 7]            = bad;
            const int64_t before = tkv_cache_refused_rows(c.get());
            ASSERT_EQ(tkv_write(c.get(), 0, TKV_K, 0, 5, 1, x.data(), nullptr), TKV_OK);
            EXPECT_EQ(tkv_cache_refused_rows(c.get()), before + 1) << spec << ", " << bad;
            ASSERT_EQ(tkv_read(c.get(), 0, TKV_K, 0, 5, 1, back.data()), TKV_OK);
            EXPECT_NE(back[0], 0.0f) << "the other head's row is kept";
            for (int i = 64; i < 128; i++) EXPECT_EQ(back[i], 0.0f) << spec << ", " << bad;
        }
    }
}

TEST(CApi, AttendRefuses) {
    const Cache           c = make();
    std::vector<float>    q(2 * 4 * 64), out(2 * 4 * 96), mask(1000);
    std::vector<uint16_t> half(1000);
    tkv_attention         good = tkv_attention_default();
    good.n_tokens = 1, good.n_heads = 4, good.n_kv = 100, good.q = q.data(), good.out = out.data(), good.scale = 0.125f;
    ASSERT_EQ(tkv_attend(c.get(), 0, &good), TKV_OK) << tkv_last_error();
    const auto refused = [&](auto change) {
        tkv_attention a = good;
        change(a);
        const int code = tkv_attend(c.get(), 0, &a);
        return code == TKV_INVALID_ARGUMENT && *tkv_last_error();
    };
    EXPECT_TRUE(refused([](tkv_attention& a) { a.q = nullptr; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.out = nullptr; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_heads = 3; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_heads = 0; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_tokens = 0; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_kv = 131; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_kv = -1; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_kv = INT64_MAX; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.stream = 2; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.stream = -1; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_streams = 3; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_streams = 0; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.n_threads = 0; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.scale = NAN; }));
    EXPECT_TRUE(refused([](tkv_attention& a) { a.softcap = INFINITY; }));
    EXPECT_TRUE(refused([&](tkv_attention& a) { a.mask_f32 = mask.data(), a.mask_stride = 99; }));
    EXPECT_TRUE(refused([&](tkv_attention& a) { a.mask_f32 = mask.data(), a.mask_f16 = half.data(), a.mask_stride = 100; }));
    EXPECT_EQ(tkv_attend(c.get(), 2, &good), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_attend(nullptr, 0, &good), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_attend(c.get(), 0, nullptr), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_attend_end(nullptr), TKV_INVALID_ARGUMENT);
    tkv_attend_run(nullptr);
}

// Sums of two arguments must not wrap around into the valid range.
TEST(CApi, AttendRefusesHugeNumbers) {
    const Cache        c = make();
    std::vector<float> q(2 * 4 * 64), out(2 * 4 * 96);
    tkv_attention      a = tkv_attention_default();
    a.n_tokens = 1, a.n_heads = 4, a.n_kv = 100, a.q = q.data(), a.out = out.data();
    a.stream = INT_MAX, a.n_streams = 2;
    EXPECT_EQ(tkv_attend(c.get(), 0, &a), TKV_INVALID_ARGUMENT);
    a.stream = 1, a.n_streams = INT_MAX;
    EXPECT_EQ(tkv_attend(c.get(), 0, &a), TKV_INVALID_ARGUMENT);
}

// Streams, f16 mask, sinks, threads through the C API give what AttentionJob is tested to give: two streams at once equal each alone.
TEST(CApi, StreamsTogetherEqualStreamsAlone) {
    const tkv_cache_params p = shape(2, 2, 64, 96, 300, 2);
    const Cache            c = make("k=turbo4:v=turbo3", p);
    fill(c.get(), p, 82, 300);
    Random                   random(83);
    const std::vector<float> q = gaussian(random, 2 * 3 * 4 * 64), sinks = gaussian(random, 4);
    std::vector<uint16_t>    mask(2 * 3 * 310, 0);
    for (size_t i = 0; i < mask.size(); i += 5) mask[i] = 0xfc00; // -inf
    std::vector<float> both(2 * 3 * 4 * 96), alone(both.size());
    tkv_attention      a = tkv_attention_default();
    a.n_tokens = 3, a.n_heads = 4, a.n_streams = 2, a.n_kv = 300, a.scale = 0.125f, a.sinks = sinks.data(), a.mask_f16 = mask.data(),
    a.mask_stride = 310;
    a.q = q.data(), a.out = both.data(), a.n_threads = 3;
    ASSERT_EQ(tkv_attend(c.get(), 1, &a), TKV_OK) << tkv_last_error();
    for (int s = 0; s < 2; s++) {
        a.stream = s, a.n_streams = 1, a.n_threads = 1;
        a.q = q.data() + s * 3 * 4 * 64, a.out = alone.data() + s * 3 * 4 * 96, a.mask_f16 = mask.data() + s * 3 * 310;
        ASSERT_EQ(tkv_attend(c.get(), 1, &a), TKV_OK) << tkv_last_error();
    }
    double size = 0;
    for (size_t i = 0; i < both.size(); i++) {
        EXPECT_NEAR(both[i], alone[i], 1e-5) << i; // the split over threads may differ, the numbers hardly
        size += std::fabs(both[i]);
    }
    EXPECT_GT(size / static_cast<double>(both.size()), 0.01);
}

// Callers at the same time, on caches of their own and on one, each with helpers: the same bits as one after the other.
TEST(CApi, CallersAtTheSameTime) {
    const tkv_cache_params p = shape(1, 2, 64, 64, 1200, 1);
    std::vector<Cache>     caches;
    for (int i = 0; i < 3; i++) caches.push_back(make("turbo3", p)), fill(caches.back().get(), p, 90 + static_cast<uint64_t>(i), 1200);
    Random                   random(93);
    const std::vector<float> q      = gaussian(random, 4 * 64);
    const auto               attend = [&](const Cache& c) {
        std::vector<float> out(4 * 64);
        tkv_attention      a = tkv_attention_default();
        a.n_tokens = 1, a.n_heads = 4, a.n_kv = 1200, a.scale = 0.125f, a.n_threads = 3, a.q = q.data(), a.out = out.data();
        EXPECT_EQ(tkv_attend(c.get(), 0, &a), TKV_OK) << tkv_last_error();
        return out;
    };
    std::vector<std::vector<float>> want;
    for (const Cache& c : caches) want.push_back(attend(c));
    EXPECT_NE(want[0], want[1]);
    std::atomic<int>         wrong{0};
    std::vector<std::thread> callers;
    for (size_t t = 0; t < 6; t++)
        callers.emplace_back([&, t] {
            for (int i = 0; i < 50; i++) wrong += attend(caches[t % 3]) != want[t % 3];
        });
    for (std::thread& t : callers) t.join();
    EXPECT_EQ(wrong, 0);
}

TEST(CApi, StateRoundTrip) {
    const tkv_cache_params p = shape();
    for (const char* spec : {"turbo2", "k=turbo4:v=turbo3:first=f16x1", "f16"}) {
        const Cache a = make(spec), b = make(spec);
        fill(a.get(), p, 84, 130);
        for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{129}, int64_t{130}}) {
            EXPECT_EQ(tkv_cache_clear(b.get()), TKV_OK);
            const std::vector<uint8_t> bytes = saved(a.get(), 1, n);
            int64_t                    got   = -1;
            ASSERT_EQ(tkv_state_load(b.get(), 0, bytes.data(), bytes.size(), &got), TKV_OK) << tkv_last_error();
            EXPECT_EQ(got, n);
            EXPECT_EQ(saved(b.get(), 0, n), bytes) << "the same bytes again";
            if (n == 130) {
                EXPECT_EQ(everything(b.get(), p, 0), everything(a.get(), p, 1)) << spec;
            }
        }
    }
}

TEST(CApi, StateArgumentsRefused) {
    const Cache          c     = make();
    std::vector<uint8_t> bytes = saved(c.get(), 0, 10);
    EXPECT_EQ(tkv_state_bytes(c.get(), 131), 0u);
    EXPECT_EQ(tkv_state_bytes(c.get(), -1), 0u);
    EXPECT_EQ(tkv_state_bytes(nullptr, 1), 0u);
    EXPECT_EQ(tkv_state_save(c.get(), 0, 10, bytes.data(), bytes.size() - 1), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_save(c.get(), 0, 131, bytes.data(), bytes.size()), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_save(c.get(), 2, 10, bytes.data(), bytes.size()), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_save(c.get(), 0, 10, nullptr, bytes.size()), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_load(c.get(), 0, nullptr, 0, nullptr), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_load(c.get(), 2, bytes.data(), bytes.size(), nullptr), TKV_INVALID_ARGUMENT);
    EXPECT_EQ(tkv_state_load(c.get(), 1, bytes.data(), bytes.size(), nullptr), TKV_OK) << "n may be NULL";
}

// Truncated, extended or with any one bit changed: refused, and the cache is as it was.
TEST(CApi, DamagedStatesAreRefused) {
    const tkv_cache_params p = shape(1, 1, 32, 32, 70, 2);
    const Cache            a = make("k=turbo4:v=f16", p), b = make("k=turbo4:v=f16", p);
    fill(a.get(), p, 85, 70);
    fill(b.get(), p, 86, 70);
    const std::vector<uint8_t> good    = saved(a.get(), 0, 12);
    const std::vector<float>   before  = everything(b.get(), p, 1);
    const auto                 refused = [&](const std::vector<uint8_t>& bytes) {
        const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size() + 1]); // + 1: never zero
        std::copy(bytes.begin(), bytes.end(), exact.get());
        int64_t n = 77;
        return tkv_state_load(b.get(), 1, exact.get(), bytes.size(), &n) == TKV_CORRUPT_DATA && n == 77 && *tkv_last_error();
    };
    for (size_t n = 0; n < good.size(); n++)
        ASSERT_TRUE(refused({good.begin(), good.begin() + static_cast<long>(n)})) << "cut to " << n << " of " << good.size();
    std::vector<uint8_t> bytes = good;
    bytes.push_back(0);
    EXPECT_TRUE(refused(bytes)) << "a byte too many";
    for (size_t i = 0; i < good.size(); i++) {
        bytes = good;
        bytes[i] ^= static_cast<uint8_t>(1u << i % 8);
        ASSERT_TRUE(refused(bytes)) << "a bit of byte " << i << " of " << good.size();
    }
    // Rows that no encoder makes, under a checksum that is right: the scale of the first row of K, a value of the last row of V.
    const size_t first = 40 + std::strlen("k=turbo4:v=f16"), last = good.size() - 10;
    for (const auto& [at, high] : {std::pair<size_t, uint8_t>{first, 0x7c}, {first, 0xbc}, {last, 0x7c}}) { // NaN, -1, NaN
        bytes     = good;
        bytes[at] = 0x34, bytes[at + 1] = high;
        uint64_t sum = 0xcbf29ce484222325ull; // FNV-1a 64
        for (size_t i = 0; i + 8 < bytes.size(); i++) sum = (sum ^ bytes[i]) * 0x100000001b3ull;
        for (int i = 0; i < 8; i++) bytes[bytes.size() - 8 + static_cast<size_t>(i)] = static_cast<uint8_t>(sum >> (8 * i));
        EXPECT_TRUE(refused(bytes)) << at;
        EXPECT_NE(std::string(tkv_last_error()).find("no encoder makes"), std::string::npos) << tkv_last_error();
    }
    EXPECT_EQ(everything(b.get(), p, 1), before);
}

// A whole state of another cache: other formats, head_dims, layers, heads; more cells than there are.
TEST(CApi, StatesOfOtherCachesAreRefused) {
    const tkv_cache_params p       = shape(2, 2, 64, 64, 64, 1);
    const Cache            c       = make("turbo4", p);
    const auto             refused = [&](const char* spec, const tkv_cache_params& other, int64_t n) {
        const Cache                o     = make(spec, other);
        const std::vector<uint8_t> bytes = saved(o.get(), 0, n);
        return tkv_state_load(c.get(), 0, bytes.data(), bytes.size(), nullptr) != TKV_OK && *tkv_last_error();
    };
    EXPECT_FALSE(refused("turbo4", p, 10)) << tkv_last_error();
    EXPECT_FALSE(refused("turbo4", shape(2, 2, 64, 64, 500, 3), 64)) << "number of cells and streams may differ: " << tkv_last_error();
    EXPECT_TRUE(refused("turbo3", p, 10));
    EXPECT_TRUE(refused("k=turbo4:v=turbo3", p, 10));
    EXPECT_TRUE(refused("turbo4:first=f16x1", p, 10));
    EXPECT_TRUE(refused("turbo4", shape(3, 2, 64, 64), 10));
    EXPECT_TRUE(refused("turbo4", shape(2, 1, 64, 64), 10));
    EXPECT_TRUE(refused("turbo4", shape(1, 4, 64, 64), 10)) << "same number of bytes, other shape";
    EXPECT_TRUE(refused("turbo4", shape(2, 2, 32, 96), 10));
    EXPECT_TRUE(refused("turbo4", shape(2, 2, 64, 64, 100), 65)) << "more cells than the cache has";
}

TEST(CApi, CopyMovesPackedRows) {
    const tkv_cache_params p = shape();
    const Cache            c = make("k=turbo2:v=f16", p);
    fill(c.get(), p, 87, 130);
    ASSERT_EQ(tkv_copy(c.get(), 0, 1, 0, 130), TKV_OK);
    EXPECT_EQ(everything(c.get(), p, 0), everything(c.get(), p, 1));
    EXPECT_EQ(saved(c.get(), 0, 130), saved(c.get(), 1, 130));
}

TEST(CApi, NullCachesAreHarmless) {
    EXPECT_STREQ(tkv_cache_spec(nullptr), "");
    EXPECT_EQ(tkv_cache_bytes(nullptr), 0u);
    EXPECT_EQ(tkv_cache_refused_rows(nullptr), 0);
    EXPECT_EQ(tkv_cache_clear(nullptr), TKV_INVALID_ARGUMENT);
}
