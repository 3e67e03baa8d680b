// Memory of whole caches: what tkv_cache_bytes() says is what a full one takes, it comes as cells are written, and nothing is copied.
#include <gtest/gtest.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) // clang's way to say it
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#include <algorithm>
#include <memory>

#include "cache/exact_slots.h"
#include "cache/tile_store.h"
#include "resident.h"
#include "test_data.h"
#include "tightkv/tightkv.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

struct Destroy {
    void operator()(tkv_cache* c) const { tkv_cache_destroy(c); }
};
using Cache = std::unique_ptr<tkv_cache, Destroy>;

// Batches so small that no exact row of theirs needs a table of its own (exact_batch.h), which is not counted.
constexpr int     kLayers = 2, kHeads = 4, kDim = 128, kBatch = kExactFewTokens;
constexpr int64_t kCells = 32768;

// Cells [from, from + n) of all layers, as a host would write them.
void append(tkv_cache* c, int64_t from, int n, const std::vector<float>& rows) {
    std::vector<tkv_token> tokens;
    for (int i = 0; i < n; i++) tokens.push_back({0, from + i, static_cast<int32_t>(from) + i});
    ASSERT_EQ(tkv_batch_begin(c, n, tokens.data()), TKV_OK) << tkv_last_error();
    for (int layer = 0; layer < kLayers; layer++)
        for (const tkv_operand op : {TKV_K, TKV_V}) ASSERT_EQ(tkv_append(c, layer, op, rows.data()), TKV_OK) << tkv_last_error();
}

} // namespace

TEST(Resident, ACacheTakesWhatItSays) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the thread sanitizer keeps four bytes for every byte";
#elif defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "the address sanitizer keeps what is freed, and marks every byte";
#endif
    if (resident_bytes() < 0) GTEST_SKIP() << "this system does not say how much memory is in use";
    Random     random(11);
    const auto rows = gaussian(random, size_t{kBatch} * kHeads * kDim);
    bool       warm = false; // the first time around, code and tables of the library and the allocator's memory become resident, too
    for (const char* spec : {"turbo4:sink=4:window=32", "turbo4:sink=4:window=32", "k=turbo3:v=turbo2", "f16"}) {
        tkv_cache_params p = tkv_cache_params_default();
        p.n_layers = kLayers, p.n_kv_heads = kHeads, p.head_dim_k = p.head_dim_v = kDim, p.n_cells = kCells;
        const double before = resident_bytes();
        tkv_cache*   made   = nullptr;
        ASSERT_EQ(tkv_cache_create(spec, &p, &made), TKV_OK) << tkv_last_error();
        const Cache  cache(made);
        const double bytes = static_cast<double>(tkv_cache_bytes(made)), allowed = 0.02 * bytes;
        EXPECT_TRUE(!warm || resident_bytes() - before < allowed) << spec << ": memory is taken only when cells are written";
        for (int64_t cell = 0; cell < kCells;) {
            append(made, cell, kBatch, rows);
            cell += kBatch;
            if (cell % (kCells / 4) != 0 || !warm) continue;
            // The front of each head ends in the middle of a page, a huge one where the system gives those. A copy would be seen.
            const double written = bytes * static_cast<double>(cell) / kCells, fronts = 2.0 * kLayers * kHeads * (2 << 20);
            const double grown = resident_bytes() - before;
            EXPECT_GT(grown, written - allowed) << spec << ", " << cell << " cells";
            EXPECT_LT(grown, std::min(written + fronts, bytes) + allowed) << spec << ", " << cell << " cells";
        }
        const double full = resident_bytes() - before;
        if (warm) {
            EXPECT_NEAR(full, bytes, allowed) << spec;
        }
        warm = true;
    }
}

// Tiles stay where they are from the first cell to the last: whoever reads need not look again, and nothing is moved.
TEST(Resident, TilesStayWhereTheyAre) {
    std::unique_ptr<TileStore> store;
    const StoreShape           shape{.n_streams = 2, .n_kv_heads = 3, .head_dim = 64, .n_cells = 10000};
    ASSERT_TRUE(TileStore::create(*find_format("turbo3"), Operand::K, shape, store).ok());
    Random               random(12);
    const auto           x     = gaussian(random, 64);
    const uint8_t* const first = store->tiles(0, 0).tiles;
    const auto           head  = store->bytes() / 6;
    for (int64_t cell = 0; cell < shape.n_cells; cell += 999)
        for (int s = 0; s < 2; s++)
            for (int h = 0; h < 3; h++) {
                ASSERT_EQ(store->write(s, h, cell, x.data()), RowStatus::kOk);
                ASSERT_EQ(store->tiles(s, h).tiles, first + static_cast<size_t>(s * 3 + h) * head) << "contiguous per KV head";
            }
}
