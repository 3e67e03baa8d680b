// A tile of f16 rows and few query rows: the rows are used as they lie, [64 tokens][d], without expanding them first. For the exact rows
// beside a compressed cache (cache/exact_rows.h), where a tile is all there is and an expansion would cost more than the dots. Rows that no
// query sees by a mask of bits are left out: a table has places for the sinks of many sequences, and a query wants those of its own.
//   Isa::half_vector(p)    kLanes f16 -> f32
#pragma once
#include <algorithm>
#include <bit>

#include "cpu/attend_common.h"
#include "cpu/vectors.h"

namespace tightkv {
namespace {

template <class Isa> struct HalfRows : Vectors<Isa> {
    using V = Vectors<Isa>;
    using typename V::Fv;
    using V::kLanes, V::load, V::store, V::splat;

    // Tokens of a tile, in order.
    struct Tokens {
        int     n = 0;
        uint8_t at[kTileTokens];
        explicit Tokens(uint64_t wanted) {
            for (; wanted != 0; wanted &= wanted - 1) at[n++] = static_cast<uint8_t>(std::countr_zero(wanted));
        }
    };

    // out[r][t] = <q[r], k[t]> for the tokens t, 0 for others
    template <int R = kMaxDecodeRows>
    static void scores(const float* q, int d, const uint16_t* tile, const Tokens& tokens, int rows, float* out) {
        if constexpr (R > 1)
            if (rows < R) return scores<R - 1>(q, d, tile, tokens, rows, out);
        if (tokens.n < kTileTokens) std::fill_n(out, R * kTileTokens, 0.0f);
        for (int n = 0; n < tokens.n; n++) {
            const int       t      = tokens.at[n];
            const uint16_t* k      = tile + static_cast<size_t>(t) * d;
            Fv              sum[R] = {};
            for (int i = 0; i < d; i += kLanes) {
                const Fv x = Isa::half_vector(k + i);
                for (int r = 0; r < R; r++) sum[r] += load(q + static_cast<size_t>(r) * d + i) * x;
            }
            for (int r = 0; r < R; r++) out[r * kTileTokens + t] = Isa::fold_sum(sum[r]);
        }
    }

    // o[r] += Σ_t p[r][t] * v[t] over the tokens t
    template <int R = kMaxDecodeRows>
    static void weigh(const float* p, const uint16_t* tile, const Tokens& tokens, int d, int rows, float* o) {
        if constexpr (R > 1)
            if (rows < R) return weigh<R - 1>(p, tile, tokens, d, rows, o);
        for (int x = 0; x < d; x += kLanes) {
            Fv sum[R];
            for (int r = 0; r < R; r++) sum[r] = load(o + static_cast<size_t>(r) * d + x);
            for (int n = 0; n < tokens.n; n++) {
                const int t   = tokens.at[n];
                const Fv  row = Isa::half_vector(tile + static_cast<size_t>(t) * d + x);
                for (int r = 0; r < R; r++) sum[r] += splat(p[r * kTileTokens + t]) * row;
            }
            for (int r = 0; r < R; r++) store(o + static_cast<size_t>(r) * d + x, sum[r]);
        }
    }
};

} // namespace
} // namespace tightkv
