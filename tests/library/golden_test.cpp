// Golden bytes of format version 1. The input is integer arithmetic, so every machine has the same; a difference here means that rows
// written by an older version no longer read back: raise kFormatVersion, do not regenerate.
// `golden_test --print` writes golden_rows.h.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "codec/row.h"
#include "golden_rows.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

// Multiples of 1/512 in [-4, 4), spread by Knuth's multiplicative hash; every 37th is five times larger.
std::vector<float> golden_input(int d) {
    std::vector<float> x(static_cast<size_t>(d));
    for (int i = 0; i < d; i++) {
        const int v = static_cast<int>((static_cast<uint32_t>(i + 1) * 2654435761u) >> 20) - 2048;
        x[i]        = static_cast<float>(i % 37 == 36 ? 5 * v : v) / 512.0f;
    }
    return x;
}

std::string hex(const std::vector<uint8_t>& bytes) {
    std::string s;
    char        two[3];
    for (const uint8_t b : bytes) std::snprintf(two, sizeof two, "%02x", b), s += two;
    return s;
}

std::vector<uint8_t> canonical(const Format& f, int d) {
    const std::vector<float> x = golden_input(d);
    CodedRow                 row;
    EXPECT_EQ(encode_row(f, d, x.data(), row), RowStatus::kOk);
    std::vector<uint8_t> bytes(f.row_bytes(d));
    pack_row(f, d, row, bytes.data());
    return bytes;
}

} // namespace

TEST(Golden, CanonicalBytes) {
    ASSERT_EQ(kFormatVersion, 1) << "a new version needs golden rows of its own beside these";
    int checked = 0;
    for (const GoldenRow& g : kGoldenRows) {
        EXPECT_EQ(hex(canonical(*find_format(g.format), g.head_dim)), g.hex) << g.format << ", d " << g.head_dim;
        checked++;
    }
    EXPECT_EQ(checked, 28);
}

// Reading old bytes: codes and scale of the golden rows are stable under decode, f16, encode.
TEST(Golden, OldBytesReadBack) {
    for (const GoldenRow& g : kGoldenRows) {
        const Format&        f = *find_format(g.format);
        std::vector<uint8_t> bytes(f.row_bytes(g.head_dim));
        ASSERT_EQ(std::strlen(g.hex), 2 * bytes.size());
        for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>(std::stoi(std::string(g.hex + 2 * i, 2), nullptr, 16));
        CodedRow row;
        unpack_row(f, g.head_dim, bytes.data(), row);
        std::vector<float> x(static_cast<size_t>(g.head_dim));
        decode_row(f, g.head_dim, row, x.data());
        const std::vector<float> want   = golden_input(g.head_dim);
        double                   signal = 0, noise = 0;
        for (int i = 0; i < g.head_dim; i++)
            signal += double(want[i]) * want[i], noise += (double(want[i]) - x[i]) * (double(want[i]) - x[i]);
        EXPECT_GT(10 * std::log10(signal / noise), f.bits == 2   ? 8
                                                   : f.bits == 3 ? 13.5
                                                   : f.bits == 4 ? 19
                                                                 : 40)
            << g.format << ", d " << g.head_dim;
    }
}

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--print") == 0) {
        std::printf(
            "// Written by golden_test --print. Format version 1.\n#pragma once\n\n"
            "struct GoldenRow {\n    const char* format;\n    int         head_dim;\n    const char* hex; // canonical bytes\n};\n\n"
            "inline constexpr GoldenRow kGoldenRows[] = {\n");
        for (const int d : {64, 96, 128, 576})
            for (const Format* f : transformed_formats()) {
                const std::string s = hex(canonical(*f, d));
                std::printf("    {\"%s\", %d,", f->name, d);
                for (size_t i = 0; i < s.size(); i += 120) std::printf("\n     \"%s\"", s.substr(i, 120).c_str());
                std::printf("},\n");
            }
        std::printf("};\n");
        return 0;
    }
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
