// Signs, blocks and the scalar fast Walsh-Hadamard transform.
#include "codec/transform.h"

#include <array>
#include <cmath>
#include <memory>
#include <mutex>

#include "codec/format.h"
#include "codec/rotate.h"

namespace tightkv {

namespace {

uint64_t splitmix64(uint64_t x) { // Steele, Lea & Flood 2014
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

float sign(int index, int which) {
    return splitmix64(kSignSeed + 2 * static_cast<uint64_t>(index) + static_cast<uint64_t>(which)) >> 63 ? -1.0f : 1.0f;
}

} // namespace

void fwht(float* x, int n) {
    for (int h = 1; h < n; h *= 2)
        for (int i = 0; i < n; i += 2 * h)
            for (int j = i; j < i + h; j++) {
                const float a = x[j], b = x[j + h];
                x[j] = a + b, x[j + h] = a - b;
            }
}

namespace {

struct ScalarRotation {
    static void hadamard(float* x, int n, const float* before, const float* after) {
        for (int i = 0; i < n; i++) x[i] *= before[i];
        fwht(x, n);
        for (int i = 0; i < n; i++) x[i] *= after[i];
    }
};

} // namespace

Transform::Transform(int head_dim, std::vector<float> mean) : head_dim_(head_dim), mean_(std::move(mean)) {
    for (int rest = head_dim, n = kMaxHeadDim; rest > 0; n /= 2)
        if (n <= rest) blocks_.push_back(n), rest -= n;
    for (int i = 0; i < head_dim; i++) pre_.push_back(sign(i, 0));
    int i = 0;
    for (int n : blocks_)
        for (int end = i + n; i < end; i++) post_.push_back(sign(i, 1) / std::sqrt(static_cast<float>(n)));
}

Transform::Transform(int head_dim, std::vector<float> mean, std::span<const float> matrix, std::span<const float> inverse)
    : Transform(head_dim, std::move(mean)) {
    const size_t d = static_cast<size_t>(head_dim);
    query_columns_.assign(inverse.begin(), inverse.end()); // transposed twice
    columns_.resize(d * d), inverse_columns_.resize(d * d);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++) columns_[j * d + i] = matrix[i * d + j], inverse_columns_[j * d + i] = inverse[i * d + j];
}

Transform Transform::with_mean(std::vector<float> mean) const {
    Transform t = *this;
    t.mean_     = std::move(mean);
    return t;
}

// The scalar reference shares the order of operations with every ISA: row_encode.h.
void Transform::forward(float* x) const { tightkv::forward<ScalarRotation>(*this, x); }
void Transform::inverse(float* y) const { tightkv::inverse<ScalarRotation>(*this, y); }
void Transform::query(float* q) const { tightkv::query<ScalarRotation>(*this, q); }
void Transform::output(float* o) const { tightkv::output<ScalarRotation>(*this, o); }

const Transform& transform_for(int head_dim) {
    static std::array<std::once_flag, kMaxHeadDim / 32 + 1>                   made;
    static std::array<std::unique_ptr<const Transform>, kMaxHeadDim / 32 + 1> kept;
    const size_t                                                              slot = static_cast<size_t>(head_dim) / 32;
    std::call_once(made[slot], [&] { kept[slot] = std::make_unique<const Transform>(head_dim); });
    return *kept[slot];
}

} // namespace tightkv
