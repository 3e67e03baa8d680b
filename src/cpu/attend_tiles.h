// Attention over a run of tiles, written once over the operations of an ISA (struct Isa, see avx2_read.cpp):
//   kLanes, Floats, Ints, FloatsInMemory                     floats per vector, and the vector types (GCC vector extensions)
//   prepare_query(q, d, rows, unit, QueryOperand&)           int8 operand of the scores
//   scores(bits, tile, d, operand, rows, out)                out[rows][64] = step * unit * Σ q8 * level
//   quantize_weights(w, w8) -> step                          u8 operand of the weighted sum, 64 tokens
//   weigh(bits, tile, d, w8, step, rows, o)                  o[rows][d] += step * Σ w8 * level
//   expand(format, operand, tile, d, out)                    K: out[d][64], V: out[64][d], f32 with scales
//   load_halves(p, out)                                      64 f16 -> f32
// Everything has internal linkage: each ISA unit owns its copy, compiled with its own flags.
#pragma once
#include <cmath>
#include <cstring>

#include "cpu/attend_common.h"

namespace tightkv {
namespace {

template <class Isa> struct Attention {
    static constexpr int kLanes   = Isa::kLanes;
    using Fv                      = typename Isa::Floats;
    using Iv                      = typename Isa::Ints;
    using Fu                      = typename Isa::FloatsInMemory;
    static constexpr int kVectors = kTileTokens / kLanes; // per tile row

    static Fv    load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
    static void  store(float* p, Fv v) { *reinterpret_cast<Fu*>(p) = v; }
    static Fv    splat(float x) { return Fv{} + x; }
    static Fv    larger(Fv a, Fv b) { return a > b ? a : b; }
    static float fold_max(Fv v) {
        float top = v[0];
        for (int i = 1; i < kLanes; i++) top = v[i] > top ? v[i] : top;
        return top;
    }
    static float fold_sum(Fv v) {
        float sum = 0;
        for (int i = 0; i < kLanes; i++) sum += v[i];
        return sum;
    }

    // e^x for x <= 0: 2^(n + f), n to nearest, f in [-0.5, 0.5] by the degree-5 Taylor polynomial of 2^f (relative error below 3e-6).
    // Below 2^-126 the result is 2^-126 times something at most 1.42, which no sum of softmax weights can see.
    static Fv exp_nonpositive(Fv x) {
        constexpr float kRound = 0x1.8p23f; // adding it leaves the nearest integer in the low mantissa bits
        Fv              y      = x * 1.44269504f;
        y                      = larger(y, splat(-126.0f));
        const Fv t             = y + kRound;
        const Fv f             = y - (t - kRound);
        Iv       n;
        std::memcpy(&n, &t, sizeof n);
        n -= std::bit_cast<int32_t>(kRound);
        Fv p = splat(1.3333558e-3f); // ln2^5 / 5!
        p    = p * f + 9.6181291e-3f;
        p    = p * f + 5.5504109e-2f;
        p    = p * f + 2.4022651e-1f;
        p    = p * f + 6.9314718e-1f;
        p    = p * f + 1.0f;
        Iv bits;
        std::memcpy(&bits, &p, sizeof bits);
        bits += n << 23;
        std::memcpy(&p, &bits, sizeof p);
        return p;
    }

    // out[r][t] = Σ_i q[r][i] * kt[i][t]
    template <int R> static void score_block(const float* q, int d, const float* kt, float* out) {
        constexpr int kWide = 4; // vectors of tokens per pass: R * kWide accumulators
        for (int t = 0; t < kTileTokens; t += kWide * kLanes) {
            constexpr int kCols         = kWide * kLanes <= kTileTokens ? kWide : kTileTokens / kLanes;
            Fv            acc[R][kCols] = {};
            for (int i = 0; i < d; i++) {
                Fv k[kCols];
                for (int c = 0; c < kCols; c++) k[c] = load(kt + static_cast<size_t>(i) * kTileTokens + t + c * kLanes);
                for (int r = 0; r < R; r++) {
                    const Fv x = splat(q[static_cast<size_t>(r) * d + i]);
                    for (int c = 0; c < kCols; c++) acc[r][c] += x * k[c];
                }
            }
            for (int r = 0; r < R; r++)
                for (int c = 0; c < kCols; c++) store(out + r * kTileTokens + t + c * kLanes, acc[r][c]);
        }
    }
    static void scores_f32(const float* q, int d, const float* kt, int rows, float* out) {
        int r = 0;
        for (; r + 3 <= rows; r += 3) score_block<3>(q + static_cast<size_t>(r) * d, d, kt, out + r * kTileTokens);
        for (; r < rows; r++) score_block<1>(q + static_cast<size_t>(r) * d, d, kt, out + r * kTileTokens);
    }

    // o[r][x] += Σ_t p[r][t] * v[t][x]
    template <int R> static void weigh_block(const float* p, const float* v, int d, float* o) {
        constexpr int kCols = 32 / kLanes; // d is a multiple of 32
        for (int x = 0; x < d; x += kCols * kLanes) {
            Fv acc[R][kCols];
            for (int r = 0; r < R; r++)
                for (int c = 0; c < kCols; c++) acc[r][c] = load(o + static_cast<size_t>(r) * d + x + c * kLanes);
            for (int t = 0; t < kTileTokens; t++) {
                Fv row[kCols];
                for (int c = 0; c < kCols; c++) row[c] = load(v + static_cast<size_t>(t) * d + x + c * kLanes);
                for (int r = 0; r < R; r++) {
                    const Fv w = splat(p[r * kTileTokens + t]);
                    for (int c = 0; c < kCols; c++) acc[r][c] += w * row[c];
                }
            }
            for (int r = 0; r < R; r++)
                for (int c = 0; c < kCols; c++) store(o + static_cast<size_t>(r) * d + x + c * kLanes, acc[r][c]);
        }
    }
    static void weigh_f32(const float* p, const float* v, int d, int rows, float* o) {
        int r = 0;
        for (; r + 3 <= rows; r += 3) weigh_block<3>(p + r * kTileTokens, v, d, o + static_cast<size_t>(r) * d);
        for (; r < rows; r++) weigh_block<1>(p + r * kTileTokens, v, d, o + static_cast<size_t>(r) * d);
    }

    // Additive terms of one tile for one row, -inf for keys outside [begin, end). False when the whole tile is masked.
    static bool load_bias(const AttendArgs& a, int r, int tile_begin, float* bias) {
        const int n = a.end - tile_begin < kTileTokens ? a.end - tile_begin : kTileTokens;
        if (a.mask_type == MaskType::kNone) {
            for (int t = 0; t < n; t++) bias[t] = 0.0f;
        } else {
            if (a.mask_type == MaskType::kF16) {
                const uint16_t* m = static_cast<const uint16_t*>(a.mask[r]) + tile_begin;
                if (n == kTileTokens) Isa::load_halves(m, bias);
                else
                    for (int t = 0; t < n; t++) bias[t] = half_to_float(m[t]);
            } else {
                std::memcpy(bias, static_cast<const float*>(a.mask[r]) + tile_begin, sizeof(float) * n);
            }
        }
        for (int t = n; t < kTileTokens; t++) bias[t] = kNegInf;
        if (a.slope && a.slope[r] != 1.0f && a.mask_type != MaskType::kNone)
            for (int t = 0; t < n; t++) bias[t] = bias[t] == kNegInf ? kNegInf : bias[t] * a.slope[r];
        Fv top = load(bias);
        for (int i = 1; i < kVectors; i++) top = larger(top, load(bias + i * kLanes));
        return !(fold_max(top) == kNegInf);
    }

    // Scores of one row -> weights p = exp(score - m), in place; carries m, l and o along. sc: raw dots; factor: per key, or null.
    static void softmax_row(const AttendArgs& a, float* sc, const float* factor, const float* bias, float& m, float& l, float* o) {
        const int dv  = a.v.head_dim;
        Fv        top = splat(kNegInf);
        for (int i = 0; i < kVectors; i++) {
            Fv s = load(sc + i * kLanes) * a.scale;
            if (factor) s *= load(factor + i * kLanes);
            if (a.softcap != 0) {
                Fv u = s / a.softcap;
                for (int x = 0; x < kLanes; x++) u[x] = std::tanh(u[x]);
                s = u * a.softcap;
            }
            s += load(bias + i * kLanes);
            store(sc + i * kLanes, s);
            top = larger(top, s);
        }
        const float tile_max = fold_max(top);
        if (tile_max == kNegInf) { // every key of this tile is masked for this row
            std::memset(sc, 0, sizeof(float) * kTileTokens);
            return;
        }
        if (tile_max > m) {
            const float shrink = m == kNegInf ? 0.0f : std::exp(m - tile_max);
            l *= shrink;
            for (int i = 0; i < dv; i += kLanes) store(o + i, load(o + i) * shrink);
            m = tile_max;
        }
        Fv sum{};
        for (int i = 0; i < kVectors; i++) {
            const Fv s = load(sc + i * kLanes);
            Fv       p = exp_nonpositive(s - m);
            p          = s == splat(kNegInf) ? Fv{} : p; // masked keys weigh exactly nothing
            store(sc + i * kLanes, p);
            sum += p;
        }
        l += fold_sum(sum);
    }

    // integer: scores and weighted sums of codebook formats stay on the packed codes (decode); else every tile is expanded (batched).
    static void run(const AttendArgs& a, const AttendState& s, float* scratch, bool integer) {
        const int    dk = a.k.head_dim, dv = a.v.head_dim;
        float* const kt     = scratch;                                    // [dk][64]
        float* const vt     = kt + static_cast<size_t>(kTileTokens) * dk; // [64][dv]
        float* const sc     = vt + static_cast<size_t>(kTileTokens) * dv; // [rows][64]
        const bool   k_int  = integer && a.k.format.kind == FormatKind::Levels;
        const bool   v_int  = integer && a.v.format.kind == FormatKind::Levels;
        const size_t k_step = tile_bytes(a.k.format, dk), v_step = tile_bytes(a.v.format, dv);
        const float  v_unit = v_int ? codebook(a.v.format.bits).unit : 1.0f;

        typename Isa::QueryOperand operand;
        if (k_int) Isa::prepare_query(a.q, dk, a.rows, codebook(a.k.format.bits).unit, operand);

        alignas(64) float   bias[kTileTokens], k_scale[kTileTokens], v_scale[kTileTokens], w[kTileTokens];
        alignas(64) uint8_t w8[kMaxDecodeRows][kTileTokens];
        float               step[kMaxDecodeRows];

        for (int begin = a.begin; begin < a.end; begin += kTileTokens) {
            bool any = false;
            for (int r = 0; r < a.rows && !any; r++) any = load_bias(a, r, begin, bias);
            if (!any) continue;
            const uint8_t* k = a.k.tiles + k_step * static_cast<size_t>(begin / kTileTokens);
            const uint8_t* v = a.v.tiles + v_step * static_cast<size_t>(begin / kTileTokens);

            if (k_int) {
                Isa::scores(a.k.format.bits, k, dk, operand, a.rows, sc);
                Isa::load_halves(tile_scales(a.k.format, dk, k), k_scale);
            } else {
                Isa::expand(a.k.format, Operand::K, k, dk, kt);
                scores_f32(a.q, dk, kt, a.rows, sc);
            }
            if (v_int) Isa::load_halves(tile_scales(a.v.format, dv, v), v_scale);
            for (int r = 0; r < a.rows; r++) {
                float* p = sc + r * kTileTokens;
                load_bias(a, r, begin, bias);
                softmax_row(a, p, k_int ? k_scale : nullptr, bias, s.m[r], s.l[r], s.o + static_cast<size_t>(r) * dv);
                if (v_int) { // the row scales of V go into the weights
                    for (int t = 0; t < kTileTokens; t++) w[t] = p[t] * v_scale[t];
                    step[r] = Isa::quantize_weights(w, w8[r]) * v_unit;
                }
            }
            if (v_int) {
                Isa::weigh(a.v.format.bits, v, dv, w8[0], step, a.rows, s.o);
            } else {
                Isa::expand(a.v.format, Operand::V, v, dv, vt);
                weigh_f32(sc, vt, dv, a.rows, s.o);
            }
        }
        // A query with NaN or Inf has no integer operand; its row, and only its row, answers NaN as f32 arithmetic would.
        for (int r = 0; r < a.rows; r++)
            if (!all_finite(a.q + static_cast<size_t>(r) * dk, dk)) {
                s.m[r] = 0.0f, s.l[r] = __builtin_nanf("");
                for (int i = 0; i < dv; i++) s.o[static_cast<size_t>(r) * dv + i] = __builtin_nanf("");
            }
    }
    static void decode(const AttendArgs& a, const AttendState& s, float* scratch) { run(a, s, scratch, true); }
    static void batched(const AttendArgs& a, const AttendState& s, float* scratch) { run(a, s, scratch, false); }
};

} // namespace
} // namespace tightkv
