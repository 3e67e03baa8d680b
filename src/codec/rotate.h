// Applying a Transform, written once over the Hadamard butterflies of an ISA (struct Ops, row_encode.h), so that every ISA rounds alike.
// Units that include this are compiled without contraction of a*b+c (cmake: -ffp-contract=off).
#pragma once
#include <cstring>

#include "codec/format.h"
#include "codec/transform.h"

namespace tightkv {
namespace { // one copy per ISA: never merged by the linker

// x = M x, in place; columns: output i of input j at [j * d + i]. Every output sums its inputs in ascending order.
inline void multiply(const float* columns, int d, float* x) {
    typedef float     Lanes __attribute__((vector_size(32)));
    constexpr int     kLanes = 8, kVectors = 4; // d is a multiple of 32
    alignas(64) float y[kMaxHeadDim];
    for (int i = 0; i < d; i += kLanes * kVectors) {
        Lanes sum[kVectors] = {};
        for (int j = 0; j < d; j++) {
            const float* column = columns + static_cast<size_t>(j) * static_cast<size_t>(d) + i;
            for (int k = 0; k < kVectors; k++) {
                Lanes m;
                std::memcpy(&m, column + k * kLanes, sizeof m);
                sum[k] += x[j] * m;
            }
        }
        std::memcpy(y + i, sum, sizeof sum);
    }
    std::memcpy(x, y, sizeof(float) * static_cast<size_t>(d));
}

template <class Ops> void butterflies(const Transform& t, float* x, const float* before, const float* after) {
    int at = 0;
    for (int n : t.blocks()) Ops::hadamard(x + at, n, before + at, after + at), at += n;
}

// T x, T^-T q and T^-1 y: a Hadamard transform is its own inverse but for the order of its signs.
template <class Ops> void rotate(const Transform& t, float* x) {
    if (t.dense()) multiply(t.columns(), t.head_dim(), x);
    else butterflies<Ops>(t, x, t.pre(), t.post());
}
template <class Ops> void query(const Transform& t, float* q) {
    if (t.dense()) multiply(t.query_columns(), t.head_dim(), q);
    else butterflies<Ops>(t, q, t.pre(), t.post());
}
template <class Ops> void output(const Transform& t, float* y) {
    if (t.dense()) multiply(t.inverse_columns(), t.head_dim(), y);
    else butterflies<Ops>(t, y, t.post(), t.pre());
}

inline void subtract_mean(const Transform& t, float* x) {
    if (const float* mean = t.mean())
        for (int i = 0; i < t.head_dim(); i++) x[i] -= mean[i];
}
template <class Ops> void forward(const Transform& t, float* x) {
    subtract_mean(t, x);
    rotate<Ops>(t, x);
}
template <class Ops> void inverse(const Transform& t, float* y) {
    output<Ops>(t, y);
    if (const float* mean = t.mean())
        for (int i = 0; i < t.head_dim(); i++) y[i] += mean[i];
}

} // namespace
} // namespace tightkv
