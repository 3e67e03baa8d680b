// Attention over a run of tiles, lanes are tokens (scores) and dims (weighted sums). Written once over the operations of an ISA (struct
// Isa, see avx2_isa.h), beside those of vectors.h:
//   quantize_query(q, d, q8) -> step                         one query as int8, by the rules of the multiplication
//   prepare_query(q, d, rows, unit, QueryOperand&)           operand of the scores: queries as int8, laid out
//   scores_of<Codes, rows>(tile, d, operand, out)            out[rows][64] = step * unit * Σ q8 * level
//   quantize_weights(w, w8) -> step                          u8 operand of the weighted sum, 64 tokens as vectors
//   from_bytes(p)                                            kLanes u8 -> f32
//   sum_bytes(p)                                             of 64 u8
//   weigh_of<Codes, rows>(tile, d, w8, step, o)              o[rows][d] += step * Σ w8 * level
//   expand_k<Codes>, expand_v<Codes>(format, tile, d, out)   K: out[d][64], V: out[64][d], f32 with scales
//   expand_f16(operand, tile, d, out)                        the same of f16 rows
//   load_halves(p, out)                                      64 f16 -> f32
//   equal_bits(p, half)                                      bit t: p[t] == half, 64 of them
// Scores are carried in units of log2: the exponential is 2^x.
#pragma once
#include <cmath>
#include <cstring>

#include "cpu/attend_common.h"
#include "cpu/attend_halves.h"
#include "cpu/attend_rows.h"
#include "cpu/vectors.h"

namespace tightkv {
namespace {

template <class Isa> struct Attention : Vectors<Isa> {
    using V = Vectors<Isa>;
    using typename V::Fv;
    using V::kLanes, V::load, V::store, V::splat, V::larger;
    static constexpr int kVectors = kTileTokens / kLanes; // per tile row

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
        constexpr int kCols = kLanes < 8 ? 4 : 32 / kLanes; // d is a multiple of 32; the sums of three rows stay in registers
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

    // ---- packed codes: one instance per kind of codes and number of rows

    template <int R = kMaxDecodeRows>
    static void scores(const Format& f, const uint8_t* tile, int d, const typename Isa::QueryOperand& op, int rows, float* out) {
        if constexpr (R > 1)
            if (rows < R) return scores<R - 1>(f, tile, d, op, rows, out);
        with_codes(f, [&]<class C>(C) { Isa::template scores_of<C, R>(tile, d, op, out); });
    }
    template <int R = kMaxDecodeRows>
    static void weigh(const Format& f, const uint8_t* tile, int d, const uint8_t* w8, const float* step, int rows, float* o) {
        if constexpr (R > 1)
            if (rows < R) return weigh<R - 1>(f, tile, d, w8, step, rows, o);
        with_codes(f, [&]<class C>(C) { Isa::template weigh_of<C, R>(tile, d, w8, step, o); });
    }

    static void expand(const Format& f, Operand op, const uint8_t* tile, int d, float* out) {
        const auto codes = [&]<class C>(C) {
            op == Operand::K ? Isa::template expand_k<C>(f, tile, d, out) : Isa::template expand_v<C>(f, tile, d, out);
        };
        f.transformed() ? with_codes(f, codes) : Isa::expand_f16(op, tile, d, out);
    }

    // ---- masks: one tile of one row is open (adds nothing), closed (-inf everywhere) or has terms of its own

    enum class View : uint8_t { kOpen, kClosed, kTerms };

    // terms: additive terms in units of log2, -inf for keys outside [begin, end); written when the answer is kTerms.
    static View view_tile(const AttendArgs& a, int r, int tile_begin, float* terms) {
        const int n = a.end - tile_begin < kTileTokens ? a.end - tile_begin : kTileTokens;
        if (a.mask_type == MaskType::kBits) {
            const uint64_t all     = n == kTileTokens ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
            const uint64_t visible = mask_word(a, r, tile_begin) & all;
            if (visible == 0) return View::kClosed;
            if (visible == ~uint64_t{0}) return View::kOpen;
            for (int t = 0; t < kTileTokens; t++) terms[t] = visible >> t & 1 ? 0.0f : kNegInf;
            return View::kTerms;
        }
        if (n == kTileTokens) {
            if (a.mask_type == MaskType::kNone) return View::kOpen;
            if (a.mask_type == MaskType::kF16) {
                const uint16_t* m = static_cast<const uint16_t*>(a.mask[r]) + tile_begin;
                if (Isa::equal_bits(m, 0) == ~uint64_t{0}) return View::kOpen;
                if (Isa::equal_bits(m, kHalfNegInf) == ~uint64_t{0}) return View::kClosed;
                Isa::load_halves(m, terms);
            }
        }
        if (n < kTileTokens || a.mask_type == MaskType::kF32)
            for (int t = 0; t < kTileTokens; t++) terms[t] = t < n ? mask_value(a, r, tile_begin + t) : kNegInf;
        else if (a.slope && a.slope[r] != 1.0f)
            for (int t = 0; t < kTileTokens; t++) terms[t] = terms[t] == kNegInf ? kNegInf : terms[t] * a.slope[r];
        float top = kNegInf;
        for (int t = 0; t < kTileTokens; t++) {
            terms[t] *= kLog2E;
            top = terms[t] > top ? terms[t] : top;
        }
        return top == kNegInf ? View::kClosed : View::kTerms;
    }

    // Tokens of a tile that some row sees, or may see: bit t.
    static uint64_t seen_tokens(const AttendArgs& a, int tile_begin) {
        const int n    = a.end - tile_begin;
        uint64_t  seen = a.mask_type == MaskType::kBits ? 0 : ~uint64_t{0};
        for (int r = 0; r < a.rows && ~seen != 0; r++) seen |= mask_word(a, r, tile_begin);
        return n < kTileTokens ? seen & ((uint64_t{1} << n) - 1) : seen;
    }

    // ---- the running softmax

    struct RowState {
        float m;        // reference the weights are relative to: at most kLag behind the true maximum
        float top;      // the true maximum so far
        Fv    l;        // Σ weights, by lane
        Fv    mass{};   // Σ weights * row scales of V, by lane, of this call; packed V only
        float seen = 0; // its sum when it was last looked at
    };

    // Scores of one row in place: dots, times factor per key, then the soft-cap with its offset, plus terms. Returns the largest; -inf: the
    // row sees nothing of the tile.
    template <bool Terms>
    static float row_scores(const AttendArgs& a, float* scores, const float* factor, const float* terms, float offset) {
        Fv top = splat(kNegInf);
        for (int i = 0; i < kTileTokens; i += kLanes) {
            Fv x = load(scores + i) * load(factor + i);
            if (a.softcap != 0) {
                x = (x + offset) / a.softcap;
                for (int k = 0; k < kLanes; k++) x[k] = std::tanh(x[k]);
                x = x * (a.softcap * kLog2E);
            }
            if (Terms) x += load(terms + i);
            store(scores + i, x);
            top = larger(top, x);
        }
        return Isa::fold_max(top);
    }
    // Scores -> weights 2^(score - m), in place. tile_top: the largest score, not -inf. Masked: others may be.
    template <bool Masked> static void row_weights(const AttendArgs& a, float tile_top, RowState& s, float* scores, float* o) {
        s.top = tile_top > s.top ? tile_top : s.top;
        if (tile_top > s.m + kLag || s.m == kNegInf) {
            const float shrink = s.m == kNegInf ? 0.0f : std::exp2(s.m - tile_top);
            s.l *= shrink, s.mass *= shrink, s.seen *= shrink;
            for (int i = 0; i < a.v.head_dim; i += kLanes) store(o + i, load(o + i) * shrink);
            s.m = tile_top;
        }
        for (int i = 0; i < kTileTokens; i += kLanes) {
            const Fv x = load(scores + i);
            Fv       p = V::exp2(x - s.m);
            if (Masked) p = x == splat(kNegInf) ? Fv{} : p; // masked keys weigh exactly nothing
            store(scores + i, p);
            s.l += p;
        }
    }

    // ---- second passes: when, and why, says attend_common.h

    // rest: what int8 leaves of the queries that need a second pass, [rows][d]; 0 for the others. False: none needs it.
    static bool query_rest(const AttendArgs& a, float* rest) {
        const int   d     = a.k.head_dim;
        const float limit = query_peak_limit(a.k.format);
        bool        any   = false;
        for (int r = 0; r < a.rows; r++, rest += d) {
            const float* q = a.q + static_cast<size_t>(r) * d;
            Fv           top{}, sum{};
            for (int i = 0; i < d; i += kLanes) {
                const Fv square = load(q + i) * load(q + i);
                top             = larger(top, square), sum += square;
            }
            int8_t q8[kMaxHeadDim];
            float  step = 0;
            if (always_twice(a.k.format) || Isa::fold_max(top) * static_cast<float>(d) > limit * Isa::fold_sum(sum))
                step = Isa::quantize_query(q, d, q8);
            any |= step > 0;
            for (int i = 0; i < d; i++) rest[i] = step > 0 ? q[i] - step * static_cast<float>(q8[i]) : 0.0f;
        }
        return any;
    }
    // Whether bytes of this step lose too much of a tile's weights. tile: the weights' sum by lane, which s.mass contains.
    static bool loses_mass(Fv tile, float step, const uint8_t* w8, RowState& s) {
        const auto too_much = [&](float lost) { return lost > kLostMass * s.seen; };
        if (!too_much(step * (kTileTokens / 2))) return false; // what rounding can take off at most, and the mass only grows
        s.seen = Isa::fold_sum(s.mass);
        if (!too_much(step * (kTileTokens / 2))) return false;
        const float lost = std::fabs(Isa::fold_sum(tile) - step * static_cast<float>(Isa::sum_bytes(w8)));
        return too_much(lost) && lost > kLostSteps * step;
    }
    // Bytes of what w8 leaves of the weights. Returns their step, at most 1.5/255 of the first one (avx2: 6/255.4): before, w8 becomes one
    // less where it can, and then leaves between 0 and 1.5 steps.
    static float weight_rest(const Fv* w, float step, uint8_t* w8, uint8_t* rest8) {
        for (int t = 0; t < kTileTokens; t++) w8[t] = static_cast<uint8_t>(w8[t] - (w8[t] != 0));
        Fv rest[kVectors];
        for (int i = 0; i < kVectors; i++) rest[i] = w[i] - Isa::from_bytes(w8 + i * kLanes) * step;
        return Isa::quantize_weights(rest, rest8);
    }

    // integer: scores and weighted sums of formats with codes stay on the packed codes (decode); else every tile is expanded (batched).
    static void run(const AttendArgs& a, const AttendState& s, float* scratch, bool integer) {
        const int    dk = a.k.head_dim, dv = a.v.head_dim;
        float* const kt     = scratch;                                    // [dk][64]
        float* const vt     = kt + static_cast<size_t>(kTileTokens) * dk; // [64][dv]
        float* const sc     = vt + static_cast<size_t>(kTileTokens) * dv; // [rows][64]
        const bool   k_int  = integer && a.k.format.transformed();
        const bool   v_int  = integer && a.v.format.transformed();
        const bool   k_half = integer && !a.k.format.transformed(), v_half = integer && !a.v.format.transformed();
        const size_t k_step = tile_bytes(a.k.format, dk), v_step = tile_bytes(a.v.format, dv);
        const float  v_unit = v_int ? unit_of(a.v.format) : 1.0f;
        const float  sparse = std::log2(a.sparse_v); // -inf when off
        const float  scale  = a.softcap != 0 ? a.scale : a.scale * kLog2E;

        typename Isa::QueryOperand operand[2]; // of both passes
        const bool                 k_twice = k_int && query_rest(a, kt);
        if (k_int) Isa::prepare_query(a.q, dk, a.rows, unit_of(a.k.format), operand[0]);
        if (k_twice) Isa::prepare_query(kt, dk, a.rows, unit_of(a.k.format), operand[1]);

        alignas(64) float   terms[kTileTokens], factor[kTileTokens], v_scale[kTileTokens] = {};
        alignas(64) uint8_t w8[kMaxDecodeRows][kTileTokens], rest8[kMaxDecodeRows][kTileTokens];
        float               step[kMaxDecodeRows], rest_step[kMaxDecodeRows];
        RowState            state[kMaxBatchedRows];
        for (int r = 0; r < a.rows; r++) {
            const float m = s.m[r] * kLog2E;
            state[r]      = {m, m, Fv{}, Fv{}, 0};
            state[r].l[0] = s.l[r];
        }
        for (int t = 0; t < kTileTokens; t++) factor[t] = scale;

        for (int begin = a.begin; begin < a.end; begin += kTileTokens) {
            const auto same_view = [&](int r) { // as the row before: query heads of one token
                return r > 0 &&
                       (a.mask_type == MaskType::kNone || (a.mask[r] == a.mask[r - 1] && (!a.slope || a.slope[r] == a.slope[r - 1])));
            };
            View view  = View::kClosed;
            int  first = 0;
            for (; first < a.rows; first++) // the first row that sees something
                if (!same_view(first) && (view = view_tile(a, first, begin, terms)) != View::kClosed) break;
            if (first == a.rows) continue;
            const uint8_t* k = a.k.tiles + k_step * static_cast<size_t>(begin / kTileTokens);
            const uint8_t* v = a.v.tiles + v_step * static_cast<size_t>(begin / kTileTokens);
            // The scales of the next tiles: they are needed at once, and lie behind the codes.
            for (int i = 64; i <= 128; i += 64) __builtin_prefetch(k + 2 * k_step - i), __builtin_prefetch(v + 2 * v_step - i);

            const typename HalfRows<Isa>::Tokens wanted(k_half || v_half ? seen_tokens(a, begin) : 0);
            if (k_int) {
                scores(a.k.format, k, dk, operand[0], a.rows, sc);
                if (k_twice) {
                    scores(a.k.format, k, dk, operand[1], a.rows, kt);
                    for (int i = 0; i < a.rows * kTileTokens; i += kLanes) store(sc + i, load(sc + i) + load(kt + i));
                }
                Isa::load_halves(tile_scales(a.k.format, dk, k), factor);
                for (int t = 0; t < kTileTokens; t += kLanes) store(factor + t, load(factor + t) * scale);
            } else if (k_half) {
                HalfRows<Isa>::scores(a.q, dk, reinterpret_cast<const uint16_t*>(k), wanted, a.rows, sc);
            } else {
                expand(a.k.format, Operand::K, k, dk, kt);
                scores_f32(a.q, dk, kt, a.rows, sc);
            }
            if (v_int) Isa::load_halves(tile_scales(a.v.format, dv, v), v_scale);
            // Each step for all rows before the next one: in one row every step waits for the one before.
            float top[kMaxBatchedRows];
            bool  masked[kMaxBatchedRows];
            for (int r = 0; r < a.rows; r++) {
                float* const x = sc + r * kTileTokens;
                if (r > first && !same_view(r)) view = view_tile(a, r, begin, terms);
                const float offset = a.offset ? a.offset[r] : 0.0f;
                top[r]             = kNegInf;
                masked[r]          = view == View::kTerms;
                if (r >= first && view == View::kOpen) top[r] = row_scores<false>(a, x, factor, terms, offset);
                else if (r >= first && view == View::kTerms) top[r] = row_scores<true>(a, x, factor, terms, offset);
            }
            bool live = false, v_twice = false; // some weight matters; some row has a rest
            for (int r = 0; r < a.rows; r++) {
                float *const x = sc + r * kTileTokens, *const o = s.o + static_cast<size_t>(r) * dv;
                if (top[r] == kNegInf) {
                    std::memset(x, 0, kTileTokens * sizeof(float));
                    continue;
                }
                masked[r] ? row_weights<true>(a, top[r], state[r], x, o) : row_weights<false>(a, top[r], state[r], x, o);
                live |= !(top[r] < state[r].top + sparse);
            }
            for (int r = 0; v_int && r < a.rows; r++) { // the row scales of V go into the weights
                Fv w[kVectors], tile{};
                for (int i = 0; i < kVectors; i++) {
                    w[i] = load(sc + r * kTileTokens + i * kLanes) * load(v_scale + i * kLanes);
                    tile += w[i];
                }
                state[r].mass += tile;
                const float once = Isa::quantize_weights(w, w8[r]);
                step[r]          = once * v_unit;
                if (always_twice(a.v.format) || loses_mass(tile, once, w8[r], state[r])) {
                    if (!v_twice) std::memset(rest8, 0, sizeof rest8), std::memset(rest_step, 0, sizeof rest_step);
                    v_twice      = true;
                    rest_step[r] = weight_rest(w, once, w8[r], rest8[r]) * v_unit;
                }
            }
            if (a.v_tiles) a.v_tiles->seen++, a.v_tiles->skipped += !live;
            if (!live) continue;
            if (a.v_tiles) a.v_tiles->twice += v_twice && !always_twice(a.v.format);
            if (v_int) {
                weigh(a.v.format, v, dv, w8[0], step, a.rows, s.o);
                if (v_twice) weigh(a.v.format, v, dv, rest8[0], rest_step, a.rows, s.o);
            } else if (v_half) {
                HalfRows<Isa>::weigh(sc, reinterpret_cast<const uint16_t*>(v), wanted, dv, a.rows, s.o);
            } else {
                expand(a.v.format, Operand::V, v, dv, vt);
                weigh_f32(sc, vt, dv, a.rows, s.o);
            }
        }
        for (int r = 0; r < a.rows; r++) {
            s.m[r] = state[r].m * kLn2;
            s.l[r] = Isa::fold_sum(state[r].l);
        }
        poison_rows(a, s);
    }
    static void decode(const AttendArgs& a, const AttendState& s, float* scratch) { run(a, s, scratch, true); }
    static void batched(const AttendArgs& a, const AttendState& s, float* scratch) {
        const bool integer = a.k.format.transformed() && a.v.format.transformed();
        integer ? RowAttention<Isa>::run(a, s, scratch) : run(a, s, scratch, false);
    }
};

} // namespace
} // namespace tightkv
