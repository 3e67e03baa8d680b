// Trellis codes: the search against brute force, and the proof that saves a second search.
#include "codec/trellis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "codec/oracle.h"
#include "codec/trellis_row.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

const Format& format_of(int bits) { return *find_format("turbo" + std::to_string(bits) + "t"); }

std::vector<int16_t> random_values(Random& random, int bits, int d, double deviation) {
    const double         limit = trellis_metric(bits).limit;
    std::vector<int16_t> x(static_cast<size_t>(d));
    for (int16_t& v : x) v = static_cast<int16_t>(std::clamp(std::nearbyint(random.normal() * deviation * kTrellisSteps), -limit, limit));
    return x;
}

// The operations of an ISA for trellis_row.h, lane by lane.
struct PlainBytes {
    static Bytes look(Bytes table, Bytes index) {
        for (int i = 0; i < 16; i++) index[i] = table[index[i]];
        return index;
    }
    static Words square(Words e) {
        for (int i = 0; i < 8; i++) e[i] = static_cast<uint16_t>((e[i] * e[i] + (1 << 14)) >> 15);
        return e;
    }
    static Words add(Words a, Words b) {
        for (int i = 0; i < 8; i++) a[i] = static_cast<uint16_t>(std::min(a[i] + b[i], 32767));
        return a;
    }
    static Words sub(Words a, Words b) {
        for (int i = 0; i < 8; i++) a[i] = static_cast<uint16_t>(std::max(a[i] - b[i], 0));
        return a;
    }
};

// trellis_confirm() of the scalar reference and in vectors, which must agree: on a row that only the cheap proof turns down, the search
// would hide that they do not.
template <int Bits> int both_confirm(const std::vector<int16_t>& x, const std::vector<uint8_t>& codes) {
    using Row      = TrellisRow<PlainBytes, Bits>;
    const int d    = static_cast<int>(x.size());
    const int said = trellis_confirm(Bits, d, x.data(), codes.data());
    EXPECT_EQ(Row::confirm(d, x.data(), codes.data()) ? Row::norm2(d, codes.data()) : 0, said);
    return said;
}
int both_confirm(int bits, const std::vector<int16_t>& x, const std::vector<uint8_t>& codes) {
    return bits == 2 ? both_confirm<2>(x, codes) : bits == 3 ? both_confirm<3>(x, codes) : both_confirm<4>(x, codes);
}

} // namespace

TEST(Trellis, CoordinatesAreAPermutation) {
    for (const int d : head_dims()) {
        std::vector<int> seen(static_cast<size_t>(d), 0);
        for (int s = 0; s < kSegments; s++)
            for (int e = 0; e < d / kSegments; e++) seen[static_cast<size_t>(trellis_coordinate(d, s, e))]++;
        EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(d), 1)) << d;
    }
}

// Sums of the encoder stay inside 16 bits (trellis_search.h), the parallel codes n and n + 8 are in order, and levels fit int8.
TEST(Trellis, TablesSuitTheSearch) {
    for (const int bits : {2, 3, 4}) {
        const Trellis&       t = trellis(bits);
        const TrellisMetric& m = trellis_metric(bits);
        EXPECT_EQ(m.cap % 8, 0);
        EXPECT_LE((bits == 2 ? 9 : 5) * m.cap + 7, 65535);
        int top = 0;
        for (size_t i = 0; i < 16; i++)
            for (size_t p = 0; p < 8; p++) top = std::max(top, std::abs(t.table[i] + t.second[p]));
        EXPECT_EQ(top, 127) << bits << " bit: the outermost level is 127";
        EXPECT_LT(m.limit, 32767);
        for (size_t n = 0; n < 8 && bits == 4; n++) EXPECT_LT(t.table[n], t.table[n + 8]);
    }
}

// A search that is not exact shows at once: its paths must cost no more than the oracle's in the same integers, whatever the data.
TEST(Trellis, SearchIsExact) {
    Random random(61);
    for (const int bits : {2, 3, 4})
        for (const int d : {32, 96, 128})
            for (int r = 0; r < 12; r++) {
                const std::vector<int16_t> x = random_values(random, bits, d, std::exp2(r % 6 - 3));
                std::vector<double>        position(x.begin(), x.end());
                std::vector<uint8_t>       codes(x.size());
                trellis_search(bits, d, x.data(), codes.data());
                const Format&          f    = format_of(bits);
                const oracle::PathCost got  = oracle::path_cost(f, position, codes);
                const oracle::PathCost best = oracle::path_cost(f, position, oracle::best_path(f, position));
                // levels in fixed point are off by a step at most (4 bits: two halves), metrics by their low bits and rounding
                const double unit = std::exp2(15 - 2 * trellis_metric(bits).doublings);
                EXPECT_LE(got.sum, best.sum + 2 * (got.reach + best.reach) + 2 * d * (1 + 8.5 * unit)) << bits << " bit, d " << d;
                EXPECT_GE(got.sum, best.sum * (1 - 1e-12));
            }
}

// The proof is written twice, and the same rows must pass. Random codes and values reach its corners.
TEST(Trellis, ConfirmIsTheSameInVectors) {
    Random random(63);
    for (const int bits : {2, 3, 4})
        for (const int d : {32, 128, 1024})
            for (int r = 0; r < 200; r++) {
                std::vector<int16_t> x = random_values(random, bits, d, std::exp2(r % 8 - 4));
                std::vector<uint8_t> codes(x.size());
                for (uint8_t& c : codes) c = static_cast<uint8_t>(random.below(1 << bits));
                both_confirm(bits, x, codes);
                // values close to the levels of these codes, whatever they cost
                std::vector<int8_t> level(x.size());
                trellis_levels(trellis(bits), d, codes.data(), level.data());
                for (size_t i = 0; i < x.size(); i++)
                    x[i] = static_cast<int16_t>(level[i] * trellis(bits).unit * kTrellisSteps + (r % 20) * 20 * random.normal());
                both_confirm(bits, x, codes);
            }
}

// Whatever trellis_confirm() vouches for, the search finds; and it does vouch for most rows that were decoded before.
TEST(Trellis, ConfirmedCodesAreFound) {
    Random random(62);
    for (const int bits : {2, 3, 4})
        for (const int d : {32, 64, 128, 576}) {
            int right = 0, wrong = 0, rows = 20000 / d;
            for (int r = 0; r < rows; r++) {
                std::vector<int16_t> x = random_values(random, bits, d, 1);
                std::vector<uint8_t> codes(x.size()), found(x.size());
                std::vector<int8_t>  level(x.size());
                trellis_search(bits, d, x.data(), codes.data());
                trellis_levels(trellis(bits), d, codes.data(), level.data());
                int norm2 = 0;
                for (const int l : level) norm2 += l * l;
                const double stretch = 1 + 0.02 * random.normal(), noise = random.below(3) * 8;
                const double limit = trellis_metric(bits).limit;
                for (size_t i = 0; i < x.size(); i++)
                    x[i] = static_cast<int16_t>(
                        std::clamp(std::nearbyint(level[i] * static_cast<double>(trellis(bits).unit) * kTrellisSteps * stretch +
                                                  noise * random.normal()),
                                   -limit, limit));
                trellis_search(bits, d, x.data(), found.data());
                if (const int said = both_confirm(bits, x, codes)) {
                    right++;
                    ASSERT_EQ(found, codes) << bits << " bit, d " << d << ", row " << r;
                    ASSERT_EQ(said, norm2);
                }
                // any other path must not be vouched for
                codes = found;
                codes[static_cast<size_t>(random.below(d))] ^= static_cast<uint8_t>(1 + random.below((1 << bits) - 1));
                wrong += both_confirm(bits, x, codes) != 0;
            }
            EXPECT_EQ(wrong, 0) << bits << " bit, d " << d;
            EXPECT_GT(right, rows / 3) << bits << " bit, d " << d;
        }
}
