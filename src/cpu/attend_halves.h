// A tile of f16 rows and few query rows: the rows are used as they lie, [64 tokens][d], without expanding them first. For the exact rows
// beside a compressed cache (cache/exact_rows.h), where a tile is all there is and an expansion would cost more than the dots.
//   Isa::half_vector(p)    kLanes f16 -> f32
#pragma once
#include "cpu/attend_common.h"
#include "cpu/vectors.h"

namespace tightkv {
namespace {

template <class Isa> struct HalfRows : Vectors<Isa> {
    using V = Vectors<Isa>;
    using typename V::Fv;
    using V::kLanes, V::load, V::store, V::splat;

    // out[r][t] = <q[r], k[t]> for t < n, 0 beyond
    template <int R = kMaxDecodeRows> static void scores(const float* q, int d, const uint16_t* k, int n, int rows, float* out) {
        if constexpr (R > 1)
            if (rows < R) return scores<R - 1>(q, d, k, n, rows, out);
        for (int r = 0; r < R; r++)
            for (int t = n; t < kTileTokens; t++) out[r * kTileTokens + t] = 0;
        for (int t = 0; t < n; t++, k += d) {
            Fv sum[R] = {};
            for (int i = 0; i < d; i += kLanes) {
                const Fv x = Isa::half_vector(k + i);
                for (int r = 0; r < R; r++) sum[r] += load(q + static_cast<size_t>(r) * d + i) * x;
            }
            for (int r = 0; r < R; r++) out[r * kTileTokens + t] = Isa::fold_sum(sum[r]);
        }
    }

    // o[r] += Σ_t p[r][t] * v[t] for t < n
    template <int R = kMaxDecodeRows> static void weigh(const float* p, const uint16_t* v, int n, int d, int rows, float* o) {
        if constexpr (R > 1)
            if (rows < R) return weigh<R - 1>(p, v, n, d, rows, o);
        for (int x = 0; x < d; x += kLanes) {
            Fv sum[R];
            for (int r = 0; r < R; r++) sum[r] = load(o + static_cast<size_t>(r) * d + x);
            for (int t = 0; t < n; t++) {
                const Fv row = Isa::half_vector(v + static_cast<size_t>(t) * d + x);
                for (int r = 0; r < R; r++) sum[r] += splat(p[r * kTileTokens + t]) * row;
            }
            for (int r = 0; r < R; r++) store(o + static_cast<size_t>(r) * d + x, sum[r]);
        }
    }
};

} // namespace
} // namespace tightkv
