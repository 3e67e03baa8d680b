// One row: encode against the fp64 oracle on pleasant and nasty data, norms, the projection property, packing.
#include "codec/row.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "base/half.h"
#include "codec/oracle.h"
#include "codec/trellis.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

double norm(const std::vector<double>& x) {
    double top = 0, sum = 0;
    for (const double v : x) top = std::max(top, std::fabs(v));
    for (const double v : x) sum += top > 0 ? v / top * (v / top) : 0;
    return top * std::sqrt(sum);
}

std::vector<NamedRow> all_rows(int d) {
    std::vector<NamedRow> rows = nasty_rows(d);
    for (NamedRow& r : concentrated_rows(d, [](const std::vector<double>& y) { return oracle::inverse(y); })) rows.push_back(std::move(r));
    Random random(99);
    for (int i = 0; i < 20; i++) rows.push_back({"random", gaussian(random, static_cast<size_t>(d), std::exp2(random.below(12) - 4))});
    return rows;
}

// How far a position may be off in f32. With u = 2^-24: the transform is off by (log2 n + 3) u |x| per coordinate (|Σx| <= sqrt(n) |x|),
// sum of squares in 16 lanes by (d/16 + 6) u, root, quotient and product by 4 u more, relative.
double position_error(const Format& f, int d, const oracle::Coded& c, double position) {
    const double u = 0x1p-24, transform = (std::log2(d) + 3) * u; // relative to |y|
    const double relative = f.kind == FormatKind::Uniform ? 4 * u : ((d / 16.0 + 6) / 2 + 5) * u + transform;
    double       largest  = 0; // position of a coordinate as large as the whole norm
    if (f.kind == FormatKind::Uniform) {
        double top = 0; // positions are relative to max|y|, itself off by the transform's error
        for (const double p : c.position) top = std::max(top, std::fabs(p));
        double sum = 0;
        for (const double p : c.position) sum += p * p;
        largest = 2 * std::sqrt(sum);
    } else {
        largest = 2048 * std::sqrt(d);
    }
    return largest * transform + std::fabs(position) * relative;
}

// Whether a path is the best one as far as fixed point can tell. A distance e is off by at most half a step for the position, one for the
// levels (two of them at 4 bits) and the position's own f32 error, so its square by 2 e δ + δ²; the square is rounded and its low three
// bits are dropped, at most 8.5 units of 2^15 / 4^doublings squared steps. Both paths may be off by that.
bool is_best_path(const Format& f, int d, const oracle::Coded& c, std::span<const uint8_t> codes) {
    const double           delta = 1.5 + kTrellisSteps * std::sqrt(d) * (std::log2(d) + d / 16.0 + 20) * 0x1p-24;
    const oracle::PathCost got = oracle::path_cost(f, c.position, codes), best = oracle::path_cost(f, c.position, c.codes);
    const double           unit = std::exp2(15 - 2 * trellis_metric(f.bits).doublings);
    return got.sum <= best.sum + 2 * delta * (got.reach + best.reach) + 2 * d * (delta * delta + 8.5 * unit);
}

// Whether the library's row is what one pass, c, gives, up to codes at a decision edge.
testing::AssertionResult is_one_pass(const Format& f, int d, const oracle::Coded& c, const CodedRow& row) {
    if (f.kind == FormatKind::Trellis && !is_best_path(f, d, c, std::span(row.codes, static_cast<size_t>(d))))
        return testing::AssertionFailure() << "not the best path";
    for (int i = 0; i < d && f.kind != FormatKind::Trellis; i++) {
        if (row.codes[i] == c.codes[i]) continue;
        const int step = oracle::level(f, row.codes[i]) > oracle::level(f, c.codes[i]) ? 1 : -1;
        if (static_cast<uint8_t>(c.codes[i] + step) != row.codes[i])
            return testing::AssertionFailure() << "code " << i << " is off by more than one";
        if (oracle::edge_distance(f, c.position[i]) > position_error(f, d, c, c.position[i]))
            return testing::AssertionFailure() << "code " << i << " is " << int(row.codes[i]) << ", position " << c.position[i] << " says "
                                               << int(c.codes[i]);
    }
    const double scale = oracle::scale_for(f, c.norm, std::span(row.codes, static_cast<size_t>(d)));
    const double got   = half_to_float(row.scale);
    // nearest fp16, and 2^-17 relative for the f32 arithmetic before the rounding
    const double ulp = std::exp2(std::max(std::floor(std::log2(std::max(scale, 1e-300))), -14.0) - 10);
    if (std::fabs(got - scale) > ulp / 2 + scale * 0x1p-17) return testing::AssertionFailure() << "scale " << got << ", want " << scale;
    return testing::AssertionSuccess();
}

} // namespace

class Row : public testing::TestWithParam<int> {};

TEST_P(Row, EncodesLikeTheOracle) {
    const int d = GetParam();
    for (const Format* f : transformed_formats())
        for (const NamedRow& r : all_rows(d)) {
            SCOPED_TRACE(std::string(f->name) + ", " + r.name);
            CodedRow        row;
            const RowStatus status = encode_row(*f, d, r.x.data(), row);
            oracle::Coded   c      = oracle::encode_once(*f, doubles(r.x));
            if (c.scale >= 65520) { // fp16 would be infinite
                EXPECT_EQ(status, RowStatus::kSaturated);
                EXPECT_EQ(row.scale, kHalfMax);
                continue;
            }
            ASSERT_EQ(status, RowStatus::kOk);
            if (row.scale == 0) { // nothing an fp16 scale could hold
                EXPECT_LE(c.scale, 0x1p-25 * (1 + 1e-5));
                for (int i = 0; i < d; i++) ASSERT_EQ(row.codes[i], 0);
                continue;
            }
            // The encoder goes on to a fixed point, so its row is one pass over x or over what a pass would have decoded to. Of a trellis,
            // equal or nearly equal paths are many, and the oracle's choice leads elsewhere: there what counts is that this row stays.
            const bool               stays = f->kind == FormatKind::Trellis && r.name != "random";
            testing::AssertionResult match = is_one_pass(*f, d, c, row);
            for (int round = 1; round < (stays ? 2 : 9) && !match; round++) {
                CodedRow coded = row;
                if (!stays) {
                    std::memcpy(coded.codes, c.codes.data(), static_cast<size_t>(d));
                    coded.scale = float_to_half(static_cast<float>(c.scale));
                }
                std::vector<double> x = oracle::decode(*f, d, coded);
                for (double& v : x) v = half_to_float(float_to_half(static_cast<float>(v)));
                c     = oracle::encode_once(*f, x);
                match = is_one_pass(*f, d, c, row);
            }
            EXPECT_TRUE(match);
        }
}

TEST_P(Row, DecodesLikeTheOracle) {
    const int d = GetParam();
    for (const Format* f : transformed_formats())
        for (const NamedRow& r : all_rows(d)) {
            CodedRow row;
            if (encode_row(*f, d, r.x.data(), row) == RowStatus::kRefused) continue;
            std::vector<float> x(static_cast<size_t>(d));
            decode_row(*f, d, row, x.data());
            const std::vector<double> want  = oracle::decode(*f, d, row);
            const double              bound = (std::log2(d) + 5) * 0x1p-24 * norm(want); // level product, signs, butterflies
            for (int i = 0; i < d; i++) ASSERT_NEAR(x[i], want[i], bound) << f->name << ", " << r.name << ", " << i;
        }
}

// The scale keeps the norm: an fp16 rounds by at most 2^-11. A row that needed another pass was rounded again: f16 values (at most
// 2^-11 each) and one more scale.
TEST_P(Row, KeepsTheNorm) {
    const int d = GetParam();
    for (const Format* f : transformed_formats())
        for (const NamedRow& r : all_rows(d)) {
            CodedRow row;
            if (encode_row(*f, d, r.x.data(), row) != RowStatus::kOk || row.scale < 0x0400) continue; // subnormal scale: no such promise
            const std::vector<double> x       = doubles(r.x);
            const bool                at_once = is_one_pass(*f, d, oracle::encode_once(*f, x), row);
            const double              ratio   = norm(oracle::decode(*f, d, row)) / norm(x);
            EXPECT_LE(std::fabs(ratio - 1), (at_once ? 1 : 3) * 0x1p-11 + 0x1p-17) << f->name << ", " << r.name;
        }
}

TEST_P(Row, EncodeIsAProjection) {
    const int             d = GetParam();
    Random                random(5);
    std::vector<NamedRow> rows = all_rows(d);
    for (int i = 0; i < 60000 / d; i++)
        rows.push_back({"random", gaussian(random, static_cast<size_t>(d), std::exp2(random.below(16) - 8))});
    for (int i = 0; i < 10000 / d; i++) {
        std::vector<float> x(static_cast<size_t>(d));
        for (float& v : x) v = static_cast<float>(random.normal() * std::exp(2 * random.normal()));
        rows.push_back({"log-normal tail", x});
    }
    for (const Format* f : transformed_formats()) {
        int checked = 0;
        for (const NamedRow& r : rows) {
            CodedRow first, second;
            if (encode_row(*f, d, r.x.data(), first) != RowStatus::kOk) continue;
            if (first.scale != 0 && first.scale < 0x0400) continue; // row.h: no promise for a subnormal scale
            std::vector<float> x(static_cast<size_t>(d));
            decode_row(*f, d, first, x.data());
            bool finite = true;
            for (float& v : x) v = half_to_float(float_to_half(v)), finite = finite && std::isfinite(v);
            if (!finite) continue; // row.h: nor for values above f16
            ASSERT_EQ(encode_row(*f, d, x.data(), second), RowStatus::kOk) << f->name << ", " << r.name;
            ASSERT_EQ(second.scale, first.scale) << f->name << ", " << r.name << ", scale " << half_to_float(first.scale);
            ASSERT_EQ(std::memcmp(second.codes, first.codes, static_cast<size_t>(d)), 0) << f->name << ", " << r.name;
            checked++;
        }
        EXPECT_GE(checked, 60000 / d) << f->name;
    }
}

TEST_P(Row, RefusesNanAndInf) {
    const int d = GetParam();
    Random    random(6);
    for (const Format* f : transformed_formats())
        for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY})
            for (const int at : {0, 1, 7, 8, 15, 16, 31, d / 2, d - 32, d - 17, d - 1}) {
                std::vector<float> x = gaussian(random, static_cast<size_t>(d));
                x[at]                = bad;
                CodedRow row;
                std::memset(&row, 0xa5, sizeof row);
                ASSERT_EQ(encode_row(*f, d, x.data(), row), RowStatus::kRefused) << f->name << ", " << bad << " at " << at;
                EXPECT_EQ(row.scale, 0);
                for (int i = 0; i < d; i++) ASSERT_EQ(row.codes[i], 0);
                decode_row(*f, d, row, x.data());
                for (const float v : x) ASSERT_EQ(v, 0.0f);
            }
}

TEST_P(Row, KeepsItsInput) {
    const int d = GetParam();
    Random    random(7);
    for (const Format* f : transformed_formats()) {
        const std::vector<float> x = gaussian(random, static_cast<size_t>(d));
        std::vector<float>       y = x;
        CodedRow                 row;
        ASSERT_EQ(encode_row(*f, d, y.data(), row), RowStatus::kOk);
        EXPECT_EQ(x, y);
    }
}

// Bit i*b of the code string, read one bit at a time; exact-sized heap buffers let ASan see a byte too many.
TEST_P(Row, PacksAsWritten) {
    const int d = GetParam();
    Random    random(8);
    for (const Format* f : transformed_formats()) {
        const size_t n = f->row_bytes(d);
        ASSERT_EQ(n, 2 + size_t(d) * f->bits / 8);
        CodedRow row, back;
        for (int i = 0; i < d; i++) row.codes[i] = static_cast<uint8_t>(random.next() & ((1u << f->bits) - 1));
        row.scale = 0x3c81;
        const std::unique_ptr<uint8_t[]> bytes(new uint8_t[n]);
        pack_row(*f, d, row, bytes.get());
        EXPECT_EQ(bytes[0], 0x81);
        EXPECT_EQ(bytes[1], 0x3c);
        for (int i = 0; i < d; i++) {
            unsigned code = 0;
            for (int b = 0; b < f->bits; b++) {
                const int bit = i * f->bits + b;
                code |= (bytes[2 + bit / 8] >> (bit % 8) & 1u) << b;
            }
            ASSERT_EQ(code, row.codes[i]) << f->name << ", code " << i;
        }
        unpack_row(*f, d, bytes.get(), back);
        EXPECT_EQ(back.scale, row.scale);
        EXPECT_EQ(std::memcmp(back.codes, row.codes, static_cast<size_t>(d)), 0) << f->name;
    }
}

// Any bytes are a row: whatever a file holds, nothing is read outside it and finite scales decode to the oracle's values.
TEST_P(Row, DecodesAnyBytes) {
    const int d = GetParam();
    Random    random(9);
    for (const Format* f : transformed_formats())
        for (int fill = 0; fill<256; fill += d> 256 ? 5 : 1) {
            const size_t                     n = f->row_bytes(d);
            const std::unique_ptr<uint8_t[]> bytes(new uint8_t[n]), again(new uint8_t[n]);
            for (size_t i = 0; i < n; i++) bytes[i] = static_cast<uint8_t>(fill % 2 ? fill : random.next());
            CodedRow row;
            unpack_row(*f, d, bytes.get(), row);
            const std::unique_ptr<float[]> x(new float[d]);
            decode_row(*f, d, row, x.get());
            pack_row(*f, d, row, again.get());
            ASSERT_EQ(std::memcmp(bytes.get(), again.get(), n), 0) << f->name;
            if ((row.scale & 0x7c00) == 0x7c00) continue; // Inf and NaN scales: no value to compare
            const std::vector<double> want  = oracle::decode(*f, d, row);
            const double              bound = (std::log2(d) + 5) * 0x1p-24 * norm(want);
            for (int i = 0; i < d; i++) ASSERT_NEAR(x[i], want[i], bound) << f->name;
        }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, Row, testing::ValuesIn(head_dims()), testing::PrintToStringParamName());

TEST(Format, SizesAndNames) {
    struct Size {
        const char* name;
        size_t      bytes;
        double      bits;
    };
    for (const Size& s : {Size{"turbo2", 34, 2.125},
                          {"turbo3", 50, 3.125},
                          {"turbo4", 66, 4.125},
                          {"turbo8", 130, 8.125},
                          {"f16", 256, 16.0},
                          {"turbo2t", 34, 2.125},
                          {"turbo3t", 50, 3.125},
                          {"turbo4t", 66, 4.125}}) {
        const Format* f = find_format(s.name);
        ASSERT_NE(f, nullptr) << s.name;
        EXPECT_EQ(f->row_bytes(128), s.bytes);
        EXPECT_DOUBLE_EQ(f->bits_per_value(128), s.bits);
        EXPECT_EQ(&format(f->id), f);
    }
    for (const char* none : {"", "turbo5", "TURBO4", "turbo4 ", "f1", "turbo8t"}) EXPECT_EQ(find_format(none), nullptr) << none;
    EXPECT_EQ(format_names(), "turbo2, turbo3, turbo4, turbo8, f16, turbo2t, turbo3t, turbo4t");
    for (const int d : {0, -32, 16, 31, 33, 48, 1056, 2048}) EXPECT_FALSE(valid_head_dim(d)) << d;
    for (const int d : head_dims()) EXPECT_TRUE(valid_head_dim(d)) << d;
}
