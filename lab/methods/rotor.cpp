#include "lab/methods/rotor.h"

#include <cmath>
#include <numbers>
#include <random>

namespace tightkv::lab {

// u = R v has a vector part and a trivector part w e123; R~ turns both back into a vector.
std::array<double, 3> sandwich(const Rotor& r, const std::array<double, 3>& v) {
    const auto [s, x, y, z] = r;
    const double u1 = s * v[0] - y * v[2] + z * v[1], u2 = s * v[1] + x * v[2] - z * v[0], u3 = s * v[2] - x * v[1] + y * v[0];
    const double w = x * v[0] + y * v[1] + z * v[2];
    return {s * u1 + z * u2 - y * u3 + w * x, s * u2 + x * u3 - z * u1 + w * y, s * u3 + y * u1 - x * u2 + w * z};
}

Quaternion multiply(const Quaternion& a, const Quaternion& b) {
    return {a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3], a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
            a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1], a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0]};
}

Matrix block_rotation(Blocks blocks, int head_dim, uint64_t seed) {
    std::mt19937_64            random(seed);
    std::normal_distribution<> normal;
    const auto                 unit = [&] { // uniform on the sphere of unit quaternions, which are the rotors of 3 dimensions, too
        Quaternion q;
        double     norm = 0;
        for (double& v : q) v = normal(random), norm += v * v;
        for (double& v : q) v /= std::sqrt(norm);
        return q;
    };
    const auto d = static_cast<size_t>(head_dim), block = size_t{blocks == Blocks::rotor ? 3u : blocks == Blocks::quaternion ? 4u : 2u};
    Matrix     m(d * d, 0.0f);
    const auto put = [&](size_t row, size_t column, double v) { m[row * d + column] = static_cast<float>(v); };
    for (size_t at = 0; at < d; at += block) {
        const size_t n = std::min(block, d - at);
        if (n == 1) {
            put(at, at, 1);
        } else if (n == 2) {
            const double angle = std::uniform_real_distribution<>(0, 2 * std::numbers::pi)(random);
            put(at, at, std::cos(angle)), put(at, at + 1, -std::sin(angle));
            put(at + 1, at, std::sin(angle)), put(at + 1, at + 1, std::cos(angle));
        } else if (n == 3) {
            const Quaternion q = unit();
            for (size_t c = 0; c < 3; c++) {
                std::array<double, 3> e{};
                e[c]             = 1;
                const auto image = sandwich({q[0], q[1], q[2], q[3]}, e);
                for (size_t r = 0; r < 3; r++) put(at + r, at + c, image[r]);
            }
        } else {
            const Quaternion left = unit(), right = unit();
            for (size_t c = 0; c < 4; c++) {
                Quaternion e{};
                e[c]                   = 1;
                const Quaternion image = multiply(multiply(left, e), right);
                for (size_t r = 0; r < 4; r++) put(at + r, at + c, image[r]);
            }
        }
    }
    return m;
}

namespace {

constexpr uint64_t kSeed = 0x726f746f72ull; // "rotor"

class RotorQuant : public Method {
public:
    RotorQuant(int bits, Blocks blocks) : bits_(bits), blocks_(blocks) {}
    Bits                        bits(Operand, int d) const override { return {.row = coded_row_bits(bits_, d)}; }
    std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t) const override {
        const Matrix m = block_rotation(blocks_, layer.head_dim, kSeed);
        return std::make_unique<CodedRows>(bits_, Transform(layer.head_dim, {}, m, transposed(m, layer.head_dim)));
    }

private:
    int    bits_;
    Blocks blocks_;
};

} // namespace

std::unique_ptr<Method> make_rotor(int bits, Blocks blocks) { return std::make_unique<RotorQuant>(bits, blocks); }

} // namespace tightkv::lab
