// Tiles: a lossless permutation of canonical rows, any token at any time, and the layout written in tile.h.
#include "codec/tile.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "base/half.h"
#include "cache/tile_store.h"
#include "resident.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

CodedRow random_row(Random& random, const Format& f, int d) {
    CodedRow row;
    for (int i = 0; i < d; i++) row.codes[i] = static_cast<uint8_t>(random.next() & ((1u << f.bits) - 1));
    row.scale = static_cast<uint16_t>(random.next());
    return row;
}

// Where bit `bit` of the code of (token, dim) lies, straight from the prose of tile.h.
struct Place {
    size_t byte;
    int    bit;
};
Place place(const Format& f, Operand op, int d, int token, int dim, int bit) {
    const int bits = f.bits;
    // position in a group of eight vectors: vector index, dword, byte of the dword
    int    vector, dword, byte;
    size_t group;
    if (op == Operand::K) { // [token block of 16][dim group of 32]; dword = token, vector i = dims 4i..4i+3
        group  = size_t(token / 16) * (d / 32) + dim / 32;
        vector = dim % 32 / 4, dword = token % 16, byte = dim % 4;
    } else { // [dim group of 16][token group of 32]; dword = dim, vector i = tokens 4i..4i+3
        group  = size_t(dim / 16) * 2 + token / 32;
        vector = token % 32 / 4, dword = dim % 16, byte = token % 4;
    }
    int plane, at;
    if (f.kind == FormatKind::Trellis) { // unit u, nibble high or low
        const int u = op == Operand::K ? vector % 4 : vector / 2, high = op == Operand::K ? vector / 4 : vector % 2;
        const int phase = op == Operand::K ? u : (u + dword / 4) % 4, position = bits == 3 ? (bit + 1 + phase) % 4 : bit;
        plane = bits == 2 ? u / 2 : u;
        at    = 4 * high + position + (bits == 2 ? u % 2 * 2 : 0);
        for (int p = 0; p < 3 && u == 3 && bits == 3; p++) // the plane whose own unit leaves the position free
            if ((op == Operand::K ? p : (p + dword / 4) % 4) == position) plane = p;
    } else if (bits == 8) plane = vector, at = bit;
    else if (bits == 4) plane = vector / 2, at = 4 * (vector % 2) + bit;
    else if (bits == 2) plane = vector / 4, at = 2 * (vector % 4) + bit;
    else if (vector < 6) plane = vector / 2, at = 4 * (vector % 2) + bit;
    else plane = bit, at = vector == 6 ? 3 : 7;
    return {(group * bits + plane) * 64 + size_t(dword) * 4 + byte, at};
}

} // namespace

class Tile : public testing::TestWithParam<int> {};

TEST_P(Tile, LayoutIsAsWritten) {
    const int d = GetParam();
    Random    random(31);
    for (const Format* f : transformed_formats())
        for (const Operand op : {Operand::K, Operand::V}) {
            std::vector<uint8_t> tile(tile_bytes(*f, d));
            ASSERT_EQ(tile.size(), size_t(64) * d * f->bits / 8 + 128);
            std::vector<CodedRow> rows;
            for (int t = 0; t < kTileTokens; t++) {
                rows.push_back(random_row(random, *f, d));
                tile_put(*f, op, d, tile.data(), t, rows.back());
            }
            for (int t = 0; t < kTileTokens; t++) {
                for (int i = 0; i < d; i++) {
                    unsigned code = 0;
                    for (int b = 0; b < f->bits; b++) {
                        const Place p = place(*f, op, d, t, i, b);
                        ASSERT_LT(p.byte, tile_code_bytes(*f, d));
                        code |= (tile[p.byte] >> p.bit & 1u) << b;
                    }
                    ASSERT_EQ(code, rows[t].codes[i]) << f->name << (op == Operand::K ? " K" : " V") << ", token " << t << ", dim " << i;
                }
                uint16_t scale; // fp16 scale[64] after the codes
                std::memcpy(&scale, tile.data() + size_t(64) * d * f->bits / 8 + 2 * t, 2);
                EXPECT_EQ(scale, rows[t].scale);
            }
        }
}

// Rewrites in random order: the token written reads back, all others stay, and nothing outside the tile is touched (guards, ASan).
TEST_P(Tile, RandomRewritesKeepTheOthers) {
    const int d = GetParam();
    Random    random(32);
    for (const Format* f : transformed_formats())
        for (const Operand op : {Operand::K, Operand::V}) {
            const size_t         n = tile_bytes(*f, d), guard = 64;
            std::vector<uint8_t> memory(n + 2 * guard, 0xd6);
            uint8_t* const       tile = memory.data() + guard;
            std::memset(tile, 0, n);
            std::vector<CodedRow> rows(kTileTokens);
            for (CodedRow& r : rows) std::memset(&r, 0, sizeof r);
            for (int step = 0; step < 160; step++) {
                const int token = random.below(kTileTokens);
                rows[token]     = random_row(random, *f, d);
                tile_put(*f, op, d, tile, token, rows[token]);
                if (step % 20 != 19) continue;
                for (int t = 0; t < kTileTokens; t++) {
                    CodedRow got;
                    tile_get(*f, op, d, tile, t, got);
                    ASSERT_EQ(got.scale, rows[t].scale) << f->name;
                    ASSERT_EQ(std::memcmp(got.codes, rows[t].codes, static_cast<size_t>(d)), 0)
                        << f->name << ", token " << t << ", step " << step;
                }
            }
            for (size_t i = 0; i < guard; i++) {
                ASSERT_EQ(memory[i], 0xd6);
                ASSERT_EQ(memory[guard + n + i], 0xd6);
            }
        }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, Tile, testing::ValuesIn(head_dims()), testing::PrintToStringParamName());

namespace {

std::unique_ptr<TileStore> make_store(const Format& f, Operand op, const StoreShape& shape) {
    std::unique_ptr<TileStore> store;
    const Status               s = TileStore::create(f, op, shape, store);
    EXPECT_TRUE(s.ok()) << s.message();
    return store;
}

} // namespace

// Cells are freed and reused in any order, in any stream and head; every one reads back what was last written to it.
TEST(TileStore, RandomCellWrites) {
    const StoreShape shape{2, 3, 96, 200};
    for (const Format& f : all_formats())
        for (const Operand op : {Operand::K, Operand::V}) {
            const auto                        store = make_store(f, op, shape);
            Random                            random(33);
            const auto                        index = [&](int s, int h, int64_t c) { return (size_t(s) * 3 + h) * 200 + c; };
            std::vector<std::vector<uint8_t>> want(size_t(2) * 3 * 200, std::vector<uint8_t>(f.row_bytes(96), 0));
            for (int step = 0; step < 1500; step++) {
                const int                s = random.below(2), h = random.below(3), c = random.below(200);
                const std::vector<float> x = gaussian(random, 96);
                ASSERT_EQ(store->write(s, h, c, x.data()), RowStatus::kOk);
                std::vector<uint8_t>& w = want[index(s, h, c)];
                if (f.transformed()) {
                    CodedRow row;
                    ASSERT_EQ(encode_row(f, 96, x.data(), row), RowStatus::kOk);
                    pack_row(f, 96, row, w.data());
                } else {
                    for (int i = 0; i < 96; i++) { // fp16, little endian
                        const uint16_t half = float_to_half(x[i]);
                        w[2 * i] = static_cast<uint8_t>(half), w[2 * i + 1] = static_cast<uint8_t>(half >> 8);
                    }
                }
            }
            std::vector<uint8_t> got(f.row_bytes(96));
            for (int s = 0; s < 2; s++)
                for (int h = 0; h < 3; h++)
                    for (int c = 0; c < 200; c++) {
                        store->read_canonical(s, h, c, got.data());
                        ASSERT_EQ(got, want[index(s, h, c)]) << f.name << ", stream " << s << ", head " << h << ", cell " << c;
                    }
        }
}

// Integer products rely on levels of at most 127 on either side; turbo8's bytes could say -128.
TEST(TileStore, CodesThatNoEncoderMakesAreZeroRows) {
    const Format& f = *find_format("turbo8");
    for (const Operand op : {Operand::K, Operand::V})
        for (const int at : {0, 31, 63}) {
            const auto           store = make_store(f, op, {1, 1, 64, 2});
            std::vector<uint8_t> bytes(f.row_bytes(64), 0x81); // -127
            std::vector<float>   x(64);
            bytes[0] = 0, bytes[1] = 0x3c; // scale 1
            store->write_canonical(0, 0, 1, bytes.data());
            store->read(0, 0, 1, x.data());
            ASSERT_NE(x, std::vector<float>(64, 0.0f));
            bytes[static_cast<size_t>(2 + at)] = 0x80;
            store->write_canonical(0, 0, 1, bytes.data());
            store->read(0, 0, 1, x.data());
            ASSERT_EQ(x, std::vector<float>(64, 0.0f)) << at;
        }
}

// State save and restore: canonical bytes into another store, other cells; and reading a row, then writing it, changes nothing.
TEST(TileStore, CanonicalBytesMove) {
    const StoreShape shape{1, 1, 128, 130};
    for (const Format& f : all_formats())
        for (const Operand op : {Operand::K, Operand::V}) {
            const auto           a = make_store(f, op, shape), b = make_store(f, op, shape);
            Random               random(34);
            std::vector<uint8_t> bytes(f.row_bytes(128)), again(f.row_bytes(128));
            std::vector<float>   x(128), y(128);
            for (int c = 0; c < 130; c++) {
                a->write(0, 0, c, gaussian(random, 128).data());
                a->read_canonical(0, 0, c, bytes.data());
                b->write_canonical(0, 0, 129 - c, bytes.data());
                a->read(0, 0, c, x.data());
                b->read(0, 0, 129 - c, y.data());
                ASSERT_EQ(x, y) << f.name;
                for (float& v : x) v = half_to_float(float_to_half(v)); // context shift goes through f16
                a->write(0, 0, c, x.data());
                a->read_canonical(0, 0, c, again.data());
                ASSERT_EQ(again, bytes) << f.name << ", cell " << c;
            }
        }
}

TEST(TileStore, RefusedRowsBecomeZeros) {
    const auto         store = make_store(*find_format("turbo3"), Operand::V, {1, 1, 64, 64});
    Random             random(35);
    std::vector<float> x = gaussian(random, 64);
    ASSERT_EQ(store->write(0, 0, 5, x.data()), RowStatus::kOk);
    x[63] = NAN;
    EXPECT_EQ(store->write(0, 0, 5, x.data()), RowStatus::kRefused);
    store->read(0, 0, 5, x.data());
    for (const float v : x) EXPECT_EQ(v, 0.0f);
}

TEST(TileStore, StartsAndClearsToZeroRows) {
    for (const Format& f : all_formats()) {
        const auto         store = make_store(f, Operand::K, {1, 2, 64, 100});
        Random             random(36);
        std::vector<float> x(64, 1.0f);
        store->read(0, 1, 99, x.data());
        for (const float v : x) EXPECT_EQ(v, 0.0f) << f.name;
        store->write(0, 1, 99, gaussian(random, 64).data());
        store->read(0, 1, 99, x.data());
        EXPECT_NE(x, std::vector<float>(64, 0.0f)) << f.name;
        store->clear();
        store->read(0, 1, 99, x.data());
        EXPECT_EQ(x, std::vector<float>(64, 0.0f)) << f.name;
    }
}

TEST(TileStore, RefusesImpossibleShapes) {
    std::unique_ptr<TileStore> store;
    const Format&              f = *find_format("turbo4");
    for (const int d : {0, 16, 33, 80, 1056}) {
        const Status s = TileStore::create(f, Operand::K, {1, 1, d, 64}, store);
        EXPECT_EQ(s.code(), StatusCode::kUnsupported) << d;
        EXPECT_NE(s.message().find(std::to_string(d)), std::string::npos) << s.message();
    }
    for (const StoreShape& s : {StoreShape{0, 1, 64, 64}, {1, 0, 64, 64}, {1, 1, 64, 0}, {-1, 1, 64, 64}, {1, 1, 64, -5}})
        EXPECT_EQ(TileStore::create(f, Operand::K, s, store).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(store, nullptr);
}

TEST(TileStore, CountsItsBytes) { // whole tiles, 2 streams * 3 heads * 4 tiles; f16 rows take what they take
    for (const Format& f : all_formats()) {
        const auto store = make_store(f, Operand::V, {2, 3, 96, 200});
        EXPECT_EQ(store->bytes(), size_t(2) * 3 * (f.transformed() ? 4 * 64 : 200) * f.row_bytes(96)) << f.name;
    }
}

// f16 rows lie without gaps, so a head's last tile runs into the next head: every cell keeps its own row, up to the last byte, and what
// kernels may read (whole tiles) is there. Of the last head the rest is zero. Under ASan this also reads memory that nobody owns.
TEST(TileStore, HalfRowsWithoutGaps) {
    const Format& f = *find_format("f16");
    for (const int64_t n : {1, 63, 64, 65, 130}) {
        const StoreShape   shape{2, 3, 64, n};
        const auto         store = make_store(f, Operand::K, shape);
        std::vector<float> x(64);
        const auto         value = [&](int s, int h, int64_t c, int i) {
            return static_cast<float>(((s * 3 + h) * 131 + c) % 2000 + 1) + 0.5f * (i % 2);
        };
        for (int64_t c = n - 1; c >= 0; c--)
            for (int s = 0; s < 2; s++)
                for (int h = 0; h < 3; h++) {
                    for (int i = 0; i < 64; i++) x[i] = value(s, h, c, i);
                    ASSERT_EQ(store->write(s, h, c, x.data()), RowStatus::kOk);
                }
        for (int s = 0; s < 2; s++)
            for (int h = 0; h < 3; h++) {
                for (int64_t c = 0; c < n; c++) {
                    store->read(s, h, c, x.data());
                    for (int i = 0; i < 64; i++) ASSERT_EQ(x[i], value(s, h, c, i)) << n << " cells, " << s << h << c;
                }
                const TileRun run   = store->tiles(s, h);
                const auto    tiles = static_cast<size_t>((n + kTileTokens - 1) / kTileTokens);
                const bool    last  = s == 1 && h == 2;
                for (size_t at = static_cast<size_t>(n) * 128; at < tiles * tile_bytes(f, 64); at += 2) {
                    uint16_t half;
                    std::memcpy(&half, run.tiles + at, 2);
                    ASSERT_TRUE((half & 0x7c00) != 0x7c00) << "never NaN or Inf";
                    if (last) {
                        ASSERT_EQ(half, 0);
                    }
                }
            }
        store->clear();
        store->read(1, 2, n - 1, x.data());
        for (const float v : x) ASSERT_EQ(v, 0.0f);
    }
}

// Another transform for rows that are there: decoded with the old, coded with the new. Heads have their own; zero rows stay zero codes;
// cells from n on are left alone.
TEST(TileStore, Recode) {
    constexpr int d = 64;
    for (const Format* f : transformed_formats())
        for (const Operand op : {Operand::K, Operand::V}) {
            const StoreShape                              shape{2, 2, d, 70};
            const auto                                    store = make_store(*f, op, shape);
            Random                                        random(37);
            std::vector<std::shared_ptr<const Transform>> to;
            for (int h = 0; h < 2; h++) to.push_back(std::make_shared<const Transform>(d, gaussian(random, d, 3)));
            std::vector<float>    x(d), y(d);
            std::vector<CodedRow> want;
            const auto            each = [&](auto what) {
                for (int s = 0; s < 2; s++)
                    for (int h = 0; h < 2; h++)
                        for (int64_t c = 0; c < 70; c++) what(s, h, c);
            };
            each([&](int s, int h, int64_t c) {
                if (c % 9 == 4) return; // never written
                ASSERT_EQ(store->write(s, h, c, gaussian(random, d).data()), RowStatus::kOk);
            });
            std::vector<uint8_t> bytes(f->row_bytes(d));
            each([&](int s, int h, int64_t c) {
                CodedRow row;
                store->read_canonical(s, h, c, bytes.data());
                unpack_row(*f, d, bytes.data(), row);
                if (c < 66 && row.scale != 0) {
                    store->read(s, h, c, x.data());
                    ASSERT_EQ(encode_row(*f, *to[static_cast<size_t>(h)], x.data(), row), RowStatus::kOk);
                }
                want.push_back(row);
            });
            store->recode(to, 66);
            EXPECT_EQ(&store->transform(1), to[1].get());
            size_t at = 0;
            each([&](int s, int h, int64_t c) {
                CodedRow row;
                store->read_canonical(s, h, c, bytes.data());
                unpack_row(*f, d, bytes.data(), row);
                ASSERT_EQ(row.scale, want[at].scale) << f->name << ", cell " << c;
                ASSERT_EQ(std::memcmp(row.codes, want[at].codes, d), 0) << f->name << ", cell " << c;
                store->read(s, h, c, x.data());
                decode_row(*f, *to[static_cast<size_t>(h)], row, y.data());
                ASSERT_EQ(x, y);
                at++;
            });
        }
    const auto half = make_store(*find_format("f16"), Operand::K, {1, 1, d, 3});
    Random     random(38);
    const auto row = gaussian(random, d);
    half->write(0, 0, 1, row.data());
    std::vector<float> before(d), after(d);
    half->read(0, 0, 1, before.data());
    half->recode({std::make_shared<const Transform>(d, gaussian(random, d))}, 3);
    half->read(0, 0, 1, after.data());
    EXPECT_EQ(after, before) << "f16 rows have no transform";
}

// What is printed is what the system gives: the resident size grows by the packed size, within 2 % (page tables and huge pages at the
// ends).
TEST(TileStore, ResidentSizeIsThePackedSize) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the thread sanitizer keeps four bytes for every byte";
#endif
    if (resident_bytes() < 0) GTEST_SKIP() << "this system does not say how much memory is in use";
    for (const char* name : {"turbo3", "turbo3", "f16"}) { // the first time around, code and tables of the library become resident, too
        static bool      warm = false;
        const Format&    f    = *find_format(name);
        const StoreShape shape{.n_streams = 1, .n_kv_heads = 4, .head_dim = 128, .n_cells = 100000};
        const double     before = resident_bytes();

        std::unique_ptr<TileStore> store;
        ASSERT_TRUE(TileStore::create(f, Operand::K, shape, store).ok());
        const auto   bytes = static_cast<double>(store->bytes());
        const double empty = resident_bytes();
        Random       random(5);

        std::vector<uint8_t> row(f.row_bytes(128));
        ASSERT_EQ(store->write(0, 0, 0, gaussian(random, 128, 1).data()), RowStatus::kOk);
        store->read_canonical(0, 0, 0, row.data());
        for (int h = 0; h < shape.n_kv_heads; h++)
            for (int64_t c = 0; c < shape.n_cells; c++) store->write_canonical(0, h, c, row.data());
        const double full = resident_bytes();
        store->clear();
        const double cleared = resident_bytes();
        if (std::exchange(warm, true)) {
            EXPECT_LT(empty - before, 0.02 * bytes) << name << ": memory is taken only when cells are written";
            EXPECT_NEAR(full - before, bytes, 0.02 * bytes) << name;
            EXPECT_LT(cleared - before, 0.02 * bytes) << name;
        }
    }
}
