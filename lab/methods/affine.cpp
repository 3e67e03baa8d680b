#include "lab/methods/affine.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/half.h"

namespace tightkv::lab {

namespace {

float as_half(float x) { return half_to_float(float_to_half(x)); }

void code(float* x, size_t n, size_t stride, float scale, float zero, float lowest, float highest) {
    for (size_t i = 0; i < n; i++) {
        float&      v = x[i * stride];
        const float c = scale > 0 ? std::clamp(std::nearbyint((v - zero) / scale), lowest, highest) : 0.0f;
        v             = c * scale + zero;
    }
}

} // namespace

void code_asymmetric(float* x, size_t n, size_t stride, int bits) {
    float low = x[0], high = x[0];
    for (size_t i = 1; i < n; i++) low = std::min(low, x[i * stride]), high = std::max(high, x[i * stride]);
    const auto last = static_cast<float>((1 << bits) - 1);
    code(x, n, stride, as_half((high - low) / last), as_half(low), 0, last);
}

void code_symmetric(float* x, size_t n, size_t stride, int bits) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = std::max(largest, std::abs(x[i * stride]));
    const auto last = static_cast<float>((1 << (bits - 1)) - 1);
    code(x, n, stride, as_half(largest / last), 0, -last, last);
}

void code_better(float* x, size_t n, size_t stride, int bits) {
    std::vector<float> original(n), symmetric(n);
    for (size_t i = 0; i < n; i++) original[i] = symmetric[i] = x[i * stride];
    code_symmetric(symmetric.data(), n, 1, bits);
    code_asymmetric(x, n, stride, bits);
    double with_zero = 0, without = 0;
    for (size_t i = 0; i < n; i++) {
        const double a = static_cast<double>(x[i * stride]) - static_cast<double>(original[i]);
        const double b = static_cast<double>(symmetric[i]) - static_cast<double>(original[i]);
        with_zero += a * a, without += b * b;
    }
    if (without < with_zero)
        for (size_t i = 0; i < n; i++) x[i * stride] = symmetric[i];
}

} // namespace tightkv::lab
