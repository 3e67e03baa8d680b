// Attention of many query rows over a run of tiles: lanes are query rows, so the softmax needs no step across lanes. A tile's codes are
// expanded once to bytes in the geometry of the tile and used by all rows: two blocked integer matrix products with the online softmax
// between them. Written once over the operations of an ISA (see avx2_isa.h), beside those of vectors.h:
//   kOffsetK, kOffsetV              what is added to the levels of K and V to suit the multiplication; taken off the sums' initial values
//   dword(p, j)                     bytes 4j … 4j+3 of p for every lane, as dot2 takes them
//   dot2(acc, a0, b0, a1, b1)       acc + Σ of the four a * b of both pairs, per lane. Scores: a = dword of K, b = queries; weighted sums:
//                                   a = weights, b = dword of V
//   to_ints(v), to_floats(v)        rounding to nearest
//   pack_signed/unsigned(a,b,c,d)   four ints of a lane into its four bytes
//   query_factor(q, d)              per row: the largest factor that makes q int8 by the rules of dot2; q: [d] vectors
//   weight_bound(w)                 per row: what may become kWeightLimit; w: eight tokens
//   expand_bytes<Codes>(operand, tile, d, offset, out)   level + offset of all codes, 64 d bytes
//   transpose(r)                    kLanes vectors, in place
//   equal_bits(p, half), load_halves(p, out)   as in attend_tiles.h
#pragma once
#include <cmath>
#include <cstring>

#include "cpu/attend_common.h"
#include "cpu/vectors.h"

namespace tightkv {
namespace {

template <class Isa> struct RowAttention : Vectors<Isa> {
    using V = Vectors<Isa>;
    using typename V::Fv, typename V::Iv;
    using V::kLanes, V::load, V::store, V::splat, V::larger;
    static constexpr int kPair = 2; // vectors of rows that share the broadcasts of a tile

    // What the rows of one vector see of a tile.
    struct View {
        bool open  = true;  // everything, and nothing is added
        bool terms = false; // additive terms that are neither 0 nor -inf
        int  last  = 0;     // tokens from here on are invisible to all rows; a multiple of 8
        Iv   low{}, high{}; // bit t: token t, t + 32 visible, per row
    };

    // Work space of one call, carved out of the caller's scratch.
    struct Space {
        uint8_t *k, *v;      // expanded tile: [dk/4 * 4][16 tokens][4 dims], [dv/16 * 16][16 dims][4 tokens]
        uint8_t *q, *q_rest; // [vector][dk/4] vectors of bytes; q_rest: of the second pass
        float*   o;          // [vector][dv] vectors
        float*   scores;     // [kPair][64] vectors
        uint8_t *w, *w_rest; // [kPair][16] vectors of bytes
        float*   terms;      // [kPair][64] vectors
        float*   qt;         // [dk] vectors
    };
    static Space carve(float* scratch, int dk, int dv, int vectors) {
        Space      s;
        const auto take = [&](size_t bytes) {
            float* p = scratch;
            scratch += bytes / sizeof(float);
            return p;
        };
        const size_t vector = sizeof(Fv);
        s.k                 = reinterpret_cast<uint8_t*>(take(size_t(kTileTokens) * dk));
        s.v                 = reinterpret_cast<uint8_t*>(take(size_t(kTileTokens) * dv));
        s.q                 = reinterpret_cast<uint8_t*>(take(size_t(vectors) * dk / 4 * vector));
        s.q_rest            = reinterpret_cast<uint8_t*>(take(size_t(vectors) * dk / 4 * vector));
        s.o                 = take(size_t(vectors) * dv * vector);
        s.scores            = take(kPair * kTileTokens * vector);
        s.w                 = reinterpret_cast<uint8_t*>(take(kPair * kTileTokens / 4 * vector));
        s.w_rest            = reinterpret_cast<uint8_t*>(take(kPair * kTileTokens / 4 * vector));
        s.terms             = take(kPair * kTileTokens * vector);
        s.qt                = take(size_t(dk) * vector);
        return s;
    }

    struct RowState {
        Fv   m, top, l, mass; // as in attend_tiles.h, per row
        Fv   step;            // query step * unit of the codebook * scale of the scores
        Iv   minus;           // -kOffsetK Σ q8
        Fv   offset;          // AttendArgs::offset
        bool twice;           // some row has a second pass:
        Fv   rest_ratio;      // its step in units of the first one's
        Iv   rest_minus;
    };

    // rows [n][d] -> [d] vectors; rows that are not there are zero.
    static void to_lanes(const float* rows, int n, int d, float* out) {
        for (int x = 0; x < d; x += kLanes) {
            Fv r[kLanes];
            for (int i = 0; i < kLanes; i++) r[i] = i < n ? load(rows + static_cast<size_t>(i) * d + x) : Fv{};
            Isa::transpose(r);
            for (int i = 0; i < kLanes; i++) store(out + static_cast<size_t>(x + i) * kLanes, r[i]);
        }
    }
    static void from_lanes(const float* in, int n, int d, float* rows) {
        for (int x = 0; x < d; x += kLanes) {
            Fv r[kLanes];
            for (int i = 0; i < kLanes; i++) r[i] = load(in + static_cast<size_t>(x + i) * kLanes);
            Isa::transpose(r);
            for (int i = 0; i < n; i++) store(rows + static_cast<size_t>(i) * d + x, r[i]);
        }
    }

    // The int8 operand of one vector of rows, and its step, the least-squares one: <q, q8> / <q8, q8>. Returns Σ q8.
    static Iv to_bytes(const float* qt, int d, uint8_t* q8, Fv& step) {
        const Fv factor = Isa::query_factor(qt, d);
        Fv       qx = splat(0.0f), xx = splat(0.0f);
        Iv       sum{};
        for (int i = 0; i < d; i += 4) {
            Iv x[4];
            for (int k = 0; k < 4; k++) {
                const Fv q = load(qt + static_cast<size_t>(i + k) * kLanes);
                const Fv v = q * factor;
                x[k]       = Isa::to_ints((v >= splat(-128.0f)) & (v <= splat(128.0f)) ? v : Fv{}); // NaN and Inf: zero, see poison_rows()
                const Fv f = Isa::to_floats(x[k]);
                qx += q * f, xx += f * f, sum += x[k];
            }
            const Iv bytes = Isa::pack_signed(x[0], x[1], x[2], x[3]);
            std::memcpy(q8 + static_cast<size_t>(i / 4) * sizeof bytes, &bytes, sizeof bytes);
        }
        step = xx > 0.0f ? qx / xx : Fv{};
        return sum;
    }
    // Both passes of one vector of rows (attend_common.h says who needs the second). qt is left with what the first pass leaves of it.
    static void prepare_query(const Format& f, float* qt, int d, uint8_t* q8, uint8_t* rest8, RowState& s) {
        s.minus = to_bytes(qt, d, q8, s.step) * -Isa::kOffsetK;
        Fv top{}, sum{};
        for (int i = 0; i < d; i++) {
            const Fv square = load(qt + i * kLanes) * load(qt + i * kLanes);
            top             = larger(top, square), sum += square;
        }
        const Iv needed = always_twice(f) ? s.step > 0.0f : top * static_cast<float>(d) > sum * query_peak_limit(f);
        s.twice         = Isa::any(needed);
        if (!s.twice) return;
        for (int i = 0; i < d; i++) {
            Iv four;
            std::memcpy(&four, q8 + static_cast<size_t>(i / 4) * sizeof four, sizeof four);
            const Fv x = Isa::to_floats(four << (24 - i % 4 * 8) >> 24);
            store(qt + i * kLanes, needed ? load(qt + i * kLanes) - s.step * x : Fv{});
        }
        Fv step;
        s.rest_minus = to_bytes(qt, d, rest8, step) * -Isa::kOffsetK;
        s.rest_ratio = s.step > 0.0f ? step / s.step : Fv{};
    }

    // out[n][t] = dots of the rows of vector n with token t, for t < last. The codes' unit and all scales are left out.
    // Rest: those of the second pass are added.
    template <int N, bool Rest> static void dots(const uint8_t* k, const uint8_t* q, int d, const RowState* s, int last, float* out) {
        constexpr int    kTokens = Isa::kBlock;
        constexpr size_t vector  = sizeof(Fv);
        const size_t     q_size  = static_cast<size_t>(d / 4) * vector;
        for (int t = 0; t < last; t += kTokens) {
            const uint8_t* p = k + static_cast<size_t>(t / 16) * d * 16 + (t % 16) * 4;
            const uint8_t* x = q;
            Iv             acc[kTokens][N];
            for (int i = 0; i < kTokens; i++)
                for (int n = 0; n < N; n++) acc[i][n] = Rest ? s[n].rest_minus : s[n].minus;
            for (int i = 0; i < d / 4; i += 2, p += 128, x += 2 * vector) {
                Iv a[N], b[N];
                for (int n = 0; n < N; n++) {
                    std::memcpy(&a[n], x + n * q_size, vector);
                    std::memcpy(&b[n], x + n * q_size + vector, vector);
                }
                for (int j = 0; j < kTokens; j++) {
                    const auto u = Isa::dword(p, j), w = Isa::dword(p + 64, j);
                    for (int n = 0; n < N; n++) acc[j][n] = Isa::dot2(acc[j][n], u, a[n], w, b[n]);
                }
            }
            for (int j = 0; j < kTokens; j++)
                for (int n = 0; n < N; n++) {
                    float* const at  = out + static_cast<size_t>(n * kTileTokens + t + j) * kLanes;
                    const Fv     sum = Isa::to_floats(acc[j][n]);
                    store(at, Rest ? load(at) + sum * s[n].rest_ratio : sum);
                }
        }
    }

    // o[n][x] += step[n] * Σ_t w[n][t] * level[t][x]; minus: -kOffsetV Σ_t w[n][t]
    template <int N> static void weigh(const uint8_t* v, const uint8_t* w, int d, const Fv* step, const Iv* minus, int last, float* o) {
        constexpr int    kDims  = Isa::kBlock;
        constexpr size_t vector = sizeof(Fv);
        for (int x = 0; x < d; x += kDims) {
            const uint8_t* p = v + static_cast<size_t>(x / 16) * 1024 + (x % 16) * 4;
            const uint8_t* u = w;
            Iv             acc[kDims][N];
            for (int j = 0; j < kDims; j++)
                for (int n = 0; n < N; n++) acc[j][n] = Isa::kOffsetV != 0 ? minus[n] : Iv{};
            for (int t = 0; t < last; t += 8, p += 128, u += 2 * vector) {
                Iv a[N], b[N];
                for (int n = 0; n < N; n++) {
                    std::memcpy(&a[n], u + n * 16 * vector, vector);
                    std::memcpy(&b[n], u + n * 16 * vector + vector, vector);
                }
                for (int j = 0; j < kDims; j++) {
                    const auto c = Isa::dword(p, j), e = Isa::dword(p + 64, j);
                    for (int n = 0; n < N; n++) acc[j][n] = Isa::dot2(acc[j][n], a[n], c, b[n], e);
                }
            }
            for (int j = 0; j < kDims; j++)
                for (int n = 0; n < N; n++) {
                    float* at = o + (static_cast<size_t>(n) * d + x + j) * kLanes;
                    store(at, load(at) + Isa::to_floats(acc[j][n]) * step[n]);
                }
        }
    }

    static void expand_bytes(const TileRun& run, Operand op, const uint8_t* tile, int offset, uint8_t* out) {
        with_codes(run.format, [&]<class C>(C) { Isa::template expand_bytes<C>(op, tile, run.head_dim, offset, out); });
    }

    // ---- masks

    struct RowView {
        uint64_t visible = 0;
        bool     terms   = false;
    };
    static RowView view_row(const AttendArgs& a, int r, int begin) {
        const int      n   = a.end - begin < kTileTokens ? a.end - begin : kTileTokens;
        const uint64_t all = n == kTileTokens ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
        if (a.mask_type == MaskType::kNone) return {all, false};
        if (a.mask_type == MaskType::kBits) return {mask_word(a, r, begin) & all, false};
        uint16_t halves[kTileTokens];
        if (a.mask_type == MaskType::kF16 && n == kTileTokens) {
            const uint16_t* m    = static_cast<const uint16_t*>(a.mask[r]) + begin;
            const uint64_t  open = Isa::equal_bits(m, 0), closed = Isa::equal_bits(m, kHalfNegInf);
            return {~closed, (open | closed) != all};
        }
        for (int t = 0; t < kTileTokens; t++) { // the last tile, and f32: by way of 0, -inf and "something else"
            const float m = t < n ? mask_value(a, r, begin + t) : kNegInf;
            halves[t]     = m == 0.0f ? 0 : m == kNegInf ? kHalfNegInf : 1;
        }
        const uint64_t open = Isa::equal_bits(halves, 0), closed = Isa::equal_bits(halves, kHalfNegInf);
        return {~closed, (open | closed) != ~uint64_t{0}};
    }
    static View view_rows(const AttendArgs& a, int r0, int n, int begin, float* terms) {
        View     view;
        RowView  row;
        uint64_t any = 0, every = ~uint64_t{0};
        int32_t  low[kLanes] = {}, high[kLanes] = {};
        for (int i = 0; i < n; i++) {
            if (i == 0 || (a.mask_type != MaskType::kNone && a.mask[r0 + i] != a.mask[r0 + i - 1])) row = view_row(a, r0 + i, begin);
            low[i] = static_cast<int32_t>(row.visible), high[i] = static_cast<int32_t>(row.visible >> 32);
            any |= row.visible, every &= row.visible, view.terms |= row.terms;
        }
        view.open = every == ~uint64_t{0} && !view.terms && n == kLanes;
        view.last = any == 0 ? 0 : (kTileTokens - __builtin_clzll(any) + 7) / 8 * 8;
        std::memcpy(&view.low, low, sizeof low);
        std::memcpy(&view.high, high, sizeof high);
        if (view.terms)
            for (int i = 0; i < n; i++)
                for (int t = 0; t < kTileTokens; t++)
                    terms[t * kLanes + i] = begin + t < a.end ? mask_value(a, r0 + i, begin + t) * kLog2E : kNegInf;
        return view;
    }

    // Score of token t in units of log2: soft-cap, mask terms, and -inf for what a row does not see.
    static Fv visible_score(const AttendArgs& a, const View& view, Fv x, Fv offset, const float* terms, int t) {
        if (a.softcap != 0) {
            x += offset;
            for (int i = 0; i < kLanes; i++) x[i] = std::tanh(x[i] / a.softcap);
            x = x * (a.softcap * kLog2E);
        }
        if (view.terms) x += load(terms + t * kLanes);
        const Iv bit = (t < 32 ? view.low : view.high) & (Iv{} + static_cast<int32_t>(uint32_t{1} << t % 32));
        return bit != 0 ? x : splat(kNegInf);
    }

    // The u8 operands of one vector of rows and one tile.
    struct Weights {
        Fv   step, rest_step;   // rest: the second pass
        Iv   minus, rest_minus; // -kOffsetV Σ w8
        bool twice;             // some row has a second pass
    };

    // w: [last] vectors -> bytes, of w * factor - less where that is positive. Returns their sum. Rest: w becomes what they leave of it.
    template <bool Rest> static Iv to_bytes(float* w, int last, Fv factor, Fv less, Fv step, uint8_t* w8) {
        Iv sum{};
        for (int t = 0; t < last; t += 4) {
            Iv x[4];
            for (int k = 0; k < 4; k++) {
                float* const at = w + (t + k) * kLanes;
                x[k]            = Isa::to_ints(Rest ? larger(load(at) * factor - less, Fv{}) : load(at) * factor);
                if (Rest) store(at, load(at) - Isa::to_floats(x[k]) * step);
            }
            sum += x[0] + x[1] + x[2] + x[3];
            const Iv bytes = Isa::pack_unsigned(x[0], x[1], x[2], x[3]);
            std::memcpy(w8 + static_cast<size_t>(t / 4) * sizeof bytes, &bytes, sizeof bytes);
        }
        return sum;
    }
    static Fv weight_factor(Fv bound) { // below 1e-30 a tile adds nothing that f32 could hold
        return bound > splat(1e-30f) ? Isa::kWeightLimit / bound : Fv{};
    }
    // Second pass of the rows `needed`: their bytes of the first one become one less where they can, so that between 0 and 1.5 steps are
    // left, which become bytes of a finer step: at most 1.5/255 of the first one (avx2: 6/255.4).
    static void add_rest(float* w, int last, Fv factor, Iv needed, uint8_t* w8, uint8_t* rest8, Weights& out) {
        out.minus = to_bytes<true>(w, last, factor, needed ? splat(1.0f) : Fv{}, out.step, w8) * -Isa::kOffsetV;
        Fv bound{};
        for (int t = 0; t < last; t += 8) {
            Fv x[8];
            for (int k = 0; k < 8; k++) {
                float* const at = w + (t + k) * kLanes;
                x[k]            = needed ? load(at) : Fv{};
                store(at, x[k]);
            }
            bound = larger(bound, Isa::weight_bound(x));
        }
        out.rest_minus = to_bytes<false>(w, last, weight_factor(bound), Fv{}, Fv{}, rest8) * -Isa::kOffsetV;
        out.rest_step  = bound * (1.0f / Isa::kWeightLimit);
    }

    static Iv sum_of_bytes(const uint8_t* w8, int last) {
        Iv sum{};
        for (int t = 0; t < last; t += 4) {
            Iv x;
            std::memcpy(&x, w8 + static_cast<size_t>(t / 4) * sizeof x, sizeof x);
            sum += (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24 & 255);
        }
        return sum;
    }
    // w: [last] vectors of weights, of sum `tile`, `mass` with the tiles before; bound: their weight_bound(). Changes w.
    static Weights operands(const Format& f, float* w, int last, Fv tile, Fv bound, Fv mass, uint8_t* w8, uint8_t* rest8) {
        const Fv factor = weight_factor(bound), step = bound * (1.0f / Isa::kWeightLimit);
        Weights  out{step, Fv{}, Iv{}, Iv{}, false};
        Iv       needed{};
        if (always_twice(f)) {
            needed = step > 0.0f;
        } else {
            out.minus           = to_bytes<false>(w, last, factor, Fv{}, Fv{}, w8) * -Isa::kOffsetV;
            const Fv too_much   = mass * kLostMass;
            const Iv could_lose = step * static_cast<float>(kTileTokens / 2) > too_much; // half a step each
            if (Isa::any(could_lose)) {
                const Fv lost = tile - step * Isa::to_floats(sum_of_bytes(w8, last));
                needed        = could_lose & (larger(lost, -lost) > larger(too_much, step * kLostSteps));
            }
        }
        out.twice = Isa::any(needed);
        if (out.twice || always_twice(f)) add_rest(w, last, factor, needed, w8, rest8, out);
        return out;
    }

    // ---- softmax of one vector of rows over one tile: scores [last] in, u8 weights out. live: some weight matters.
    static Weights weights(const AttendArgs& a, const View& view, const float* k_scale, const float* v_scale, const float* terms,
                           float sparse, RowState& s, float* scores, float* o, uint8_t* w8, uint8_t* rest8, bool& live) {
        // Rows that see everything keep the bare dots (times the key's scale); their step goes into the exponential.
        const bool bare = view.open && a.softcap == 0;
        const Fv   step = bare ? s.step : splat(1.0f);
        Fv         top  = splat(kNegInf);
        if (bare) {
            for (int t = 0; t < view.last; t++) {
                const Fv x = load(scores + t * kLanes) * splat(k_scale[t]);
                store(scores + t * kLanes, x);
                top = larger(top, x);
            }
            top *= step; // a step is never negative
        } else {
            for (int t = 0; t < view.last; t++) {
                const Fv x = visible_score(a, view, load(scores + t * kLanes) * splat(k_scale[t]) * s.step, s.offset, terms, t);
                store(scores + t * kLanes, x);
                top = larger(top, x);
            }
        }
        s.top = larger(s.top, top);
        live |= Isa::any((top >= s.top + sparse) & (top > splat(kNegInf)));
        const auto behind = (top > s.m + kLag) | ((s.m == splat(kNegInf)) & (top > splat(kNegInf)));
        if (Isa::any(behind)) {
            const Fv m      = behind ? top : s.m;
            const Fv shrink = s.m == splat(kNegInf) ? Fv{} : V::exp2(s.m - m);
            s.l *= shrink, s.mass *= shrink;
            for (int x = 0; x < a.v.head_dim; x++) store(o + x * kLanes, load(o + x * kLanes) * shrink);
            s.m = m;
        }
        Fv l = s.l, tile{}, bound{};
        for (int t = 0; t < view.last; t += 8) {
            Fv w[8];
            for (int k = 0; k < 8; k++) {
                const Fv x = load(scores + (t + k) * kLanes);
                w[k]       = V::exp2(x * step - s.m);
                if (!bare) w[k] = x == splat(kNegInf) ? Fv{} : w[k]; // masked keys weigh exactly nothing
                l += w[k];
                w[k] *= splat(v_scale[t + k]);
                store(scores + (t + k) * kLanes, w[k]);
            }
            bound = larger(bound, Isa::weight_bound(w));
            tile += ((w[0] + w[1]) + (w[4] + w[5])) + ((w[2] + w[3]) + (w[6] + w[7])); // as the bound of avx2 sums them
        }
        s.l = l, s.mass += tile;
        return operands(a.v.format, scores, view.last, tile, bound, s.mass, w8, rest8);
    }

    // K and V are formats with codes; at most kMaxBatchedRows rows.
    static void run(const AttendArgs& a, const AttendState& state, float* scratch) {
        const int    dk = a.k.head_dim, dv = a.v.head_dim, vectors = (a.rows + kLanes - 1) / kLanes;
        const Space  at     = carve(scratch, dk, dv, vectors);
        const size_t k_step = tile_bytes(a.k.format, dk), v_step = tile_bytes(a.v.format, dv),
                     q_size = static_cast<size_t>(dk / 4) * sizeof(Fv);
        const float scale   = unit_of(a.k.format) * (a.softcap != 0 ? a.scale : a.scale * kLog2E);
        const float v_unit  = unit_of(a.v.format);
        const float sparse  = std::log2(a.sparse_v); // -inf when off
        RowState    s[kMaxBatchedRows / kLanes];
        const auto  rows_of = [&](int n) { return a.rows - n * kLanes < kLanes ? a.rows - n * kLanes : kLanes; };

        for (int n = 0; n < vectors; n++) {
            const int rows = rows_of(n), r0 = n * kLanes;
            to_lanes(a.q + static_cast<size_t>(r0) * dk, rows, dk, at.qt);
            prepare_query(a.k.format, at.qt, dk, at.q + n * q_size, at.q_rest + n * q_size, s[n]);
            s[n].step *= scale;
            s[n].m = splat(kNegInf), s[n].l = s[n].mass = Fv{}, s[n].offset = Fv{};
            for (int i = 0; a.offset && i < rows; i++) s[n].offset[i] = a.offset[r0 + i];
            for (int i = 0; i < rows; i++) s[n].m[i] = state.m[r0 + i] * kLog2E, s[n].l[i] = state.l[r0 + i];
            s[n].top = s[n].m;
            to_lanes(state.o + static_cast<size_t>(r0) * dv, rows, dv, at.o + static_cast<size_t>(n) * dv * kLanes);
        }
        alignas(64) float k_scale[kTileTokens], v_scale[kTileTokens];
        for (int begin = a.begin; begin < a.end; begin += kTileTokens) {
            bool expanded = false;
            for (int n = 0; n < vectors; n += kPair) {
                const int pair = vectors - n < kPair ? vectors - n : kPair;
                View      view[kPair];
                int       last = 0;
                for (int i = 0; i < pair; i++) {
                    view[i] = view_rows(a, (n + i) * kLanes, rows_of(n + i), begin, at.terms + i * kTileTokens * kLanes);
                    last    = view[i].last > last ? view[i].last : last;
                }
                if (last == 0) continue;
                for (int i = 0; i < pair; i++) view[i].last = last; // what one of them does not see is closed to it by its bits
                if (!expanded) {
                    const uint8_t *k = a.k.tiles + k_step * static_cast<size_t>(begin / kTileTokens),
                                  *v = a.v.tiles + v_step * static_cast<size_t>(begin / kTileTokens);
                    expand_bytes(a.k, Operand::K, k, Isa::kOffsetK, at.k);
                    expand_bytes(a.v, Operand::V, v, Isa::kOffsetV, at.v);
                    Isa::load_halves(tile_scales(a.k.format, dk, k), k_scale);
                    Isa::load_halves(tile_scales(a.v.format, dv, v), v_scale);
                    expanded = true;
                }
                const uint8_t *q = at.q + n * q_size, *q_rest = at.q_rest + n * q_size;
                if (pair == kPair) dots<kPair, false>(at.k, q, dk, s + n, last, at.scores);
                else dots<1, false>(at.k, q, dk, s + n, last, at.scores);
                if (pair == kPair && s[n].twice && s[n + 1].twice) dots<kPair, true>(at.k, q_rest, dk, s + n, last, at.scores);
                else
                    for (int i = 0; i < pair; i++)
                        if (s[n + i].twice)
                            dots<1, true>(at.k, q_rest + i * q_size, dk, s + n + i, last, at.scores + i * kTileTokens * kLanes);
                Fv   step[kPair], rest_step[kPair];
                Iv   minus[kPair], rest_minus[kPair];
                bool live = false, twice[kPair] = {};
                for (int i = 0; i < pair; i++) {
                    const size_t  bytes = i * kTileTokens / 4 * sizeof(Fv);
                    const Weights w     = weights(a, view[i], k_scale, v_scale, at.terms + i * kTileTokens * kLanes, sparse, s[n + i],
                                                  at.scores + i * kTileTokens * kLanes, at.o + static_cast<size_t>(n + i) * dv * kLanes,
                                                  at.w + bytes, at.w_rest + bytes, live);
                    step[i] = w.step * v_unit, minus[i] = w.minus, twice[i] = w.twice;
                    rest_step[i] = w.rest_step * v_unit, rest_minus[i] = w.rest_minus;
                }
                if (a.v_tiles) a.v_tiles->seen++, a.v_tiles->skipped += !live;
                if (!live) continue;
                if (a.v_tiles) a.v_tiles->twice += (twice[0] || twice[1]) && !always_twice(a.v.format);
                float* o = at.o + static_cast<size_t>(n) * dv * kLanes;
                if (pair == kPair) weigh<kPair>(at.v, at.w, dv, step, minus, last, o);
                else weigh<1>(at.v, at.w, dv, step, minus, last, o);
                if (twice[0] && twice[1]) weigh<kPair>(at.v, at.w_rest, dv, rest_step, rest_minus, last, o);
                else
                    for (int i = 0; i < pair; i++)
                        if (twice[i])
                            weigh<1>(at.v, at.w_rest + i * kTileTokens / 4 * sizeof(Fv), dv, rest_step + i, rest_minus + i, last,
                                     o + static_cast<size_t>(i) * dv * kLanes);
            }
        }
        for (int n = 0; n < vectors; n++) {
            const int rows = rows_of(n), r0 = n * kLanes;
            from_lanes(at.o + static_cast<size_t>(n) * dv * kLanes, rows, dv, state.o + static_cast<size_t>(r0) * dv);
            for (int i = 0; i < rows; i++) state.m[r0 + i] = s[n].m[i] * kLn2, state.l[r0 + i] = s[n].l[i];
        }
        poison_rows(a, state);
    }
};

} // namespace
} // namespace tightkv
