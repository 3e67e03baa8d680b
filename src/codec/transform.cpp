// Signs, blocks and the scalar fast Walsh-Hadamard transform.
#include "codec/transform.h"

#include <array>
#include <cmath>
#include <memory>
#include <mutex>

#include "codec/format.h"

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

Transform::Transform(int head_dim) : head_dim_(head_dim) {
    for (int rest = head_dim, n = kMaxHeadDim; rest > 0; n /= 2)
        if (n <= rest) blocks_.push_back(n), rest -= n;
    for (int i = 0; i < head_dim; i++) pre_.push_back(sign(i, 0));
    int i = 0;
    for (int n : blocks_)
        for (int end = i + n; i < end; i++) post_.push_back(sign(i, 1) / std::sqrt(static_cast<float>(n)));
}

void Transform::forward(float* x) const {
    for (int i = 0; i < head_dim_; i++) x[i] *= pre_[i];
    for (int b = 0, i = 0; b < static_cast<int>(blocks_.size()); i += blocks_[b++]) fwht(x + i, blocks_[b]);
    for (int i = 0; i < head_dim_; i++) x[i] *= post_[i];
}

void Transform::inverse(float* y) const {
    for (int i = 0; i < head_dim_; i++) y[i] *= post_[i];
    for (int b = 0, i = 0; b < static_cast<int>(blocks_.size()); i += blocks_[b++]) fwht(y + i, blocks_[b]);
    for (int i = 0; i < head_dim_; i++) y[i] *= pre_[i];
}

const Transform& transform_for(int head_dim) {
    static std::array<std::once_flag, kMaxHeadDim / 32 + 1>                   made;
    static std::array<std::unique_ptr<const Transform>, kMaxHeadDim / 32 + 1> kept;
    const size_t                                                              slot = static_cast<size_t>(head_dim) / 32;
    std::call_once(made[slot], [&] { kept[slot] = std::make_unique<const Transform>(head_dim); });
    return *kept[slot];
}

} // namespace tightkv
