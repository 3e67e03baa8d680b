// Rotations of small blocks: orthogonal, of the block's size only, and as good as a full one where nothing sticks out.
#include "lab/methods/rotor.h"

#include <cmath>
#include <numbers>

#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {
struct Kind {
    Blocks      blocks;
    const char* stem;
    size_t      size;
};
constexpr Kind kKinds[] = {{Blocks::rotor, "rotor", 3}, {Blocks::quaternion, "quaternion", 4}, {Blocks::givens, "givens", 2}};
} // namespace

TEST(Rotor, QuarterTurnByHand) {
    const double h = std::sqrt(0.5); // cos and sin of 45 degrees: the sandwich turns by twice the angle, from e1 to e2
    const auto   v = sandwich({h, 0, 0, -h}, {1, 0, 3});
    EXPECT_NEAR(v[0], 0, 1e-15);
    EXPECT_NEAR(v[1], 1, 1e-15);
    EXPECT_NEAR(v[2], 3, 1e-15);                          // outside the plane e12
    const auto same = sandwich({-h, 0, 0, h}, {1, 0, 3}); // R and -R are one rotation
    for (size_t i = 0; i < 3; i++) EXPECT_NEAR(same[i], v[i], 1e-15);
}

TEST(Rotor, QuaternionProductByHand) {
    EXPECT_EQ(multiply({0, 1, 0, 0}, {0, 0, 1, 0}), (Quaternion{0, 0, 0, 1})); // ij = k
    EXPECT_EQ(multiply({0, 0, 1, 0}, {0, 1, 0, 0}), (Quaternion{0, 0, 0, -1}));
    EXPECT_EQ(multiply({1, 2, 3, 4}, {1, -2, -3, -4}), (Quaternion{30, 0, 0, 0}));
}

TEST(Rotor, MatricesAreOrthogonalAndInBlocks) {
    for (const Kind& k : kKinds)
        for (const int d : {32, 64, 96, 128, 256}) { // 3 divides one of them only
            const Matrix m = block_rotation(k.blocks, d, 1);
            const auto   n = static_cast<size_t>(d);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++) {
                    double dot = 0;
                    for (size_t c = 0; c < n; c++) dot += static_cast<double>(m[i * n + c]) * static_cast<double>(m[j * n + c]);
                    ASSERT_NEAR(dot, i == j, 4 * 0x1p-24) << k.stem << " " << d; // entries are rounded to f32
                    if (i / k.size != j / k.size) {
                        ASSERT_EQ(m[i * n + j], 0) << k.stem << " " << d;
                    }
                }
            EXPECT_NE(m, block_rotation(k.blocks, d, 2));
        }
}

TEST(Rotor, KeepsNorms) {
    const Rows rows = gaussian_rows(50, 64, 3);
    for (const Kind& k : kKinds) {
        const Rows seen = at_once(*fitted(k.stem + std::string("3"), Operand::key, 64, {}, {}), rows, 64);
        for (size_t at = 0; at < rows.size(); at += 64) {
            double before = 0, after = 0;
            for (size_t i = at; i < at + 64; i++) before += std::pow(double(rows[i]), 2), after += std::pow(double(seen[i]), 2);
            EXPECT_NEAR(std::sqrt(after / before), 1, 0x1p-11 + 1e-5); // the scale is fp16
        }
    }
}

// The papers' claim of comparable error holds where coordinates are alike; where one sticks out, a block cannot spread it.
TEST(Rotor, AsGoodAsHadamardUnlessAChannelSticksOut) {
    const Rows even = gaussian_rows(500, 64, 4), spiky = gaussian_rows(500, 64, 5, [](size_t c) { return c == 9 ? 30.0 : 1.0; });
    const auto error = [](const std::string& name, const Rows& rows) {
        return squared_error(at_once(*fitted(name, Operand::key, 64, {}, {}), rows, 64), rows);
    };
    for (const Kind& k : kKinds) {
        EXPECT_NEAR(error(k.stem + std::string("3"), even) / error("turbo3", even), 1, 0.05) << k.stem;
        EXPECT_GT(error(k.stem + std::string("3"), spiky), 2 * error("turbo3", spiky)) << k.stem;
    }
}
