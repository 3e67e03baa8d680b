// One attention operation as data, run through AttentionJob and held against the fp64 oracle within derived bounds.
//
// Notation: q' = T q, k_j and v_j the decoded rows (transformed domain where there is one), p_j the softmax weights, u = 2^-24.
//
// f32 paths (scalar; f16 operands, and many rows where either operand is f16): twice the largest error that a plain f32 evaluation of the
// same operation makes on the same rows, plus 1e-6, plus 2 * 3e-6 * Σ p|v| for the kernels' exponential (vectors.h declares 3e-6).
//
// int8 scores: q' ~ step * q8. Per coordinate the error is at most e_i = step/2, or what clipping at 127 leaves of the largest.
//   VNNI, neon:  step = max|q'| / 127
//   avx2, few rows:  step <= b / 126, where b maps to 128 so that pairs stay within 128 and eight dims within 258; rounding can break a
//                    rule by half a unit per element, 4 units of 258, so the search for a fitting step ends at 126/128 of it at the latest.
//   avx2, many rows: step = b / 126, b the largest positive or negative part of four dims of an int16 lane
// Many rows then use the least-squares step <q', q8> / <q8, q8>, off by at most step/2 * |q8|_1 / |q8|_2²: the worst case grows by that
// times |q8_i|, the expectation only shrinks.
// Then |Δs_j| <= scale Σ_i e_i |k_ji| (a soft-cap only shrinks it), and with δ the largest of them p changes by e^{±2δ}.
// int8 weights: w_t = p_t * (fp16 scale of v_t) ~ step * w8 per tile of 64, error step/2 for every token that is not masked.
//   VNNI, neon: step = max w / 255    avx2: step = (largest sum of four tokens of an int16 lane) / 255.4
// Two passes: turbo8 always, and keys in other codes where the query has an outlier: (10^0.01 - 1) * 12 * 127² D < max|q'|² d / |q'|², D
// the codes' distortion. The second pass rounds what the first one leaves, r_i with |r_i| <= e_i, by the same rules to steps of its own:
//   scores: VNNI max e / 127, avx2 b(e) / 126 with b as above, signs unknown. The error left is step/2, on avx2 with few rows at most the
//           b(e) / 128 that clipping leaves; with the least-squares step at most (1 + sqrt(d)) step/2, as |q8_i| |q8|_1 <= sqrt(d) |q8|_2².
//           The rest itself is rounded to f32: 2^-23 |q'_i| more.
//   weights: what is left lies between 0 and 1.5 steps, so VNNI step * 1.5/255, avx2 step * 4 * 1.5/255.4; f32: 2^-22 w_t more.
// Weights of other codes take a second pass by the mass they lose, which only shrinks the error: attention_passes_test.cpp.
// Together |Δo| <= (e^{2δ} - 1) Σ p|v| + e^{2δ} |T^-1| Σ_t (step/2) |level_t|: the worst case, hardly ever near.
// So the whole operation's squared error is held against its expectation, too: rounding errors are uniform, e_i² -> e_i²/3 and
// independent between keys: E = Σ_j p_j² σ_j² |v_j - o|² + Σ_t step²/12 |level_t|². A row's squared error scatters around E like a sum of n
// squares, by E sqrt(2/n); n is the effective number of keys 1/Σp², less the one that Σp = 1 takes, at least 1, and at most d/2, because
// all keys share the d errors of one query. Five deviations of the sum over all rows are allowed.
//
// With a mean, a dense transform or exact rows: q' = T^-T q and v = T^-1 y + mean. Exact rows have no integer error. f32 adds to scores:
// (d + 4) u scale Σ|q||x| for the mean's part and for an exact key x, which both are sums of d terms (u = 2^-24, one more for each product
// with the scale and the difference), and for a dense T (d + 2) u scale Σ(|T^-T||q|)|y|; to outputs: (d + 2) u |T^-1| Σ p|y|.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <tuple>

#include "base/half.h"
#include "cache/read_path.h"
#include "codec/oracle.h"
#include "dense_transform.h"
#include "exact_tables.h"
#include "test_data.h"

namespace tightkv::test {

struct AttentionCase {
    const char* k  = "turbo4";
    const char* v  = "turbo3";
    int         dk = 64, dv = 64, n_kv_heads = 2, group = 1, n_tokens = 1, n_streams = 1;
    int         n_kv     = 65;
    MaskType    mask     = MaskType::kNone;
    float       max_bias = 0, softcap = 0;
    bool        sinks       = false;
    int         threads     = 1;
    bool        terms       = true;  // the mask has other values than 0 and -inf; ALiBi always has
    bool        offsets     = false; // streams, heads and cells do not start at 0
    double      q_deviation = 1;
    float       sparse_v    = 0;
    double      k_mean = 0, v_mean = 0; // deviation of the heads' means, which rows of unit deviation lie around
    bool        dense = false;          // dense transforms, other ones for every head
    int         sink = 0, window = 0;   // exact rows
    int         written_by = 7;         // tokens of the batches before the last one, which holds the queries
    bool        reuse      = false;     // cells are written again, forgotten, and taken over from elsewhere

    std::string name() const {
        std::ostringstream s;
        s << "k " << k << " v " << v << ", d " << dk << "/" << dv << ", " << n_kv_heads << " KV heads x " << group << ", " << n_tokens
          << " tokens, " << n_streams << " streams, n_kv " << n_kv << ", mask " << int(mask) << ", max_bias " << max_bias << ", softcap "
          << softcap << ", terms " << terms << ", sinks " << sinks << ", threads " << threads << ", offsets " << offsets << ", means "
          << k_mean << "/" << v_mean << ", dense " << dense << ", sink " << sink << ", window " << window << ", batches of " << written_by
          << ", reuse " << reuse;
        return s.str();
    }
    int  n_heads() const { return n_kv_heads * group; }
    bool few_rows() const {
        return n_tokens * group <= kMaxDecodeRows || (n_tokens == 1 && group < 16);
    } // AttentionJob: these stay on the packed codes
    double scale() const { return 1.0 / std::sqrt(dk); }
    bool   exact() const { return sink > 0 || window > 0; }
};

// Σ term(i) of i < n, in four sums side by side: in one, every term waits for the one before it.
template <class Term> double sum_of(size_t n, Term term) {
    double sum[4] = {};
    size_t i      = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t lane = 0; lane < 4; lane++) sum[lane] += term(i + lane);
    for (; i < n; i++) sum[0] += term(i);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The transform of one head, as the library has it and in double.
struct CaseTransform {
    std::shared_ptr<const Transform> t;
    std::vector<double>              mean, inverse; // [d]; [d][d] row-major, empty: Hadamard
    std::vector<double>              columns;       // [d] of a dense T^-1: what a unit error of y becomes, squared

    CaseTransform(Random& random, int d, double mean_deviation, bool dense) {
        const std::vector<float> m = gaussian(random, static_cast<size_t>(d), mean_deviation);
        mean.assign(m.begin(), m.end());
        if (dense) {
            const DenseTransform made = random_dense(random, d, 2);
            inverse.assign(made.inverse32.begin(), made.inverse32.end());
            columns.assign(static_cast<size_t>(d), 0.0);
            for (size_t i = 0; i < inverse.size(); i++) columns[i % columns.size()] += inverse[i] * inverse[i];
            t = make_transform(made, m);
        } else t = std::make_shared<const Transform>(d, m);
    }
    std::vector<double> decode(const std::vector<double>& y) const {
        std::vector<double> x = inverse.empty() ? oracle::inverse(y) : product(y, false, false);
        for (size_t i = 0; i < x.size(); i++) x[i] += mean[i];
        return x;
    }
    std::vector<double> query(const std::vector<double>& q) const { return inverse.empty() ? oracle::forward(q) : product(q, true, false); }
    // |T^-1| y, or |T^-T| y; dense only.
    std::vector<double> absolute(const std::vector<double>& y, bool transposed) const { return product(y, transposed, true); }

private:
    std::vector<double> product(const std::vector<double>& y, bool transposed, bool absolute) const {
        const size_t        d = y.size();
        std::vector<double> x(d, 0.0);
        const auto          add = [&](auto term) {
            for (size_t r = 0; r < d; r++) {
                const double *const row = &inverse[r * d], *const from = y.data();
                double* const to = x.data();
                if (!transposed) to[r] = sum_of(d, [=](size_t i) { return term(row[i], from[i]); });
                for (size_t i = 0; i < d && transposed; i++) to[i] += term(row[i], from[r]);
            }
        };
        if (absolute) add([](double m, double v) { return std::fabs(m * v); });
        else add([](double m, double v) { return m * v; });
        return x;
    }
};

class AttentionData {
public:
    explicit AttentionData(const AttentionCase& c, uint64_t seed = 71) : c_(c), random_(seed) {
        const int     more  = c.offsets ? 1 : 0;
        const int64_t cells = c.n_kv + 128 * more + 5;
        make(*find_format(c.k), Operand::K, {c.n_streams + more, c.n_kv_heads + more, c.dk, cells}, k_);
        make(*find_format(c.v), Operand::V, {c.n_streams + more, c.n_kv_heads + more, c.dv, cells}, v_);
        q_.resize(q_at(c.n_streams, 0, 0));
        for (float& x : q_) x = static_cast<float>(c.q_deviation * random_.normal());
        for (int h = 0; h < c.n_heads(); h++) sinks_.push_back(static_cast<float>(2 * random_.normal()));
        mask32_.assign(size_t(c.n_streams) * c.n_tokens * mask_row(), -INFINITY);
        for (int s = 0; s < c.n_streams; s++)
            for (int t = 0; t < c.n_tokens; t++)
                for (int j = 0; j < c.n_kv; j++) {
                    const bool causal = j <= c.n_kv - c.n_tokens + t, hole = random_.below(8) == 0, dead_row = c.n_tokens > 2 && t == 1;
                    if (!causal || hole || dead_row) continue;
                    mask32_[mask_at(s, t) + j] = c.max_bias > 0 ? static_cast<float>(std::max(-2000, j - (c.n_kv - c.n_tokens + t)))
                                                 : random_.below(4) || !c.terms ? 0.0f
                                                                                : -0.5f * random_.below(8);
                }
        for (const float m : mask32_) mask16_.push_back(float_to_half(m)); // small multiples of 1/2: exact
        if (c.exact()) write_exact_rows();
    }

    // The data of a test may be changed before run().
    TileStore&          k() { return *k_; }
    TileStore&          v() { return *v_; }
    std::vector<float>& q() { return q_; }
    std::vector<float>& mask() { return mask32_; }
    float*              query(int stream, int token, int head) { return &q_[q_at(stream, token, head)]; }
    int                 store_stream(int s) const { return s + (c_.offsets ? 1 : 0); }
    int                 store_head(int h) const { return h + (c_.offsets ? 1 : 0); }
    int64_t             store_cell(bool v, int64_t j) const { return j + (c_.offsets ? (v && !c_.exact() ? 128 : 64) : 0); }
    size_t              mask_row() const { return static_cast<size_t>(c_.n_kv) + 3; } // rows not aligned on purpose
    size_t              mask_at(int s, int t) const { return (size_t(s) * c_.n_tokens + t) * mask_row(); }

    // [stream][token][head][dv] with a margin after every row that must stay as it is.
    std::vector<float> run(float scale_factor = 1.0f, int mask_shift = 0) {
        std::vector<float> out(size_t(c_.n_streams) * c_.n_tokens * c_.n_heads() * (c_.dv + kMargin), kCanary);
        AttentionArgs      a;
        a.k = k_.get(), a.v = v_.get();
        if (c_.offsets)
            a.k_stream0 = a.v_stream0 = a.k_head0 = a.v_head0 = 1, a.k_cell0 = store_cell(false, 0), a.v_cell0 = store_cell(true, 0);
        a.n_streams = c_.n_streams, a.n_kv_heads = c_.n_kv_heads, a.n_heads = c_.n_heads(), a.n_tokens = c_.n_tokens, a.n_kv = c_.n_kv;
        a.q              = q_.data();
        a.q_strides      = {sizeof(float) * q_at(0, 1, 0), sizeof(float) * q_at(0, 0, 1), sizeof(float) * q_at(1, 0, 0)};
        const size_t row = sizeof(float) * (c_.dv + kMargin);
        a.out            = out.data();
        a.out_strides    = {row * c_.n_heads(), row, row * c_.n_heads() * c_.n_tokens};
        a.scale          = static_cast<float>(c_.scale()) * scale_factor;
        a.softcap = c_.softcap, a.max_bias = c_.max_bias;
        a.mask_type       = c_.mask;
        const size_t cell = c_.mask == MaskType::kF16 ? 2 : 4;
        if (c_.mask == MaskType::kF16) a.mask = mask16_.data() + mask_shift;
        if (c_.mask == MaskType::kF32) a.mask = mask32_.data() + mask_shift;
        a.mask_strides = {cell * mask_row(), 0, cell * mask_row() * c_.n_tokens};
        if (c_.sinks) a.sinks = sinks_.data();
        a.sparse_v = c_.sparse_v;
        if (tables_) tables_->attach(a);

        AttentionJob job;
        const Status s = job.prepare(a, c_.threads);
        if (!s.ok()) throw std::runtime_error(s.message());
        std::vector<std::thread> others;
        for (int i = 1; i < c_.threads; i++) others.emplace_back([&] { job.run(); });
        job.run();
        for (std::thread& t : others) t.join();
        v_tiles_ = job.v_tiles();
        return out;
    }
    TileCounts   v_tiles() const { return v_tiles_; } // of the last run
    const float* row(const std::vector<float>& out, int s, int t, int h) const {
        return &out[((size_t(s) * c_.n_tokens + t) * c_.n_heads() + h) * (c_.dv + kMargin)];
    }

    // What the reference does not depend on: f16 and f32 masks hold the same values (not kNone), threads share the work.
    void ask_with(MaskType mask, int threads) { c_.mask = mask, c_.threads = threads; }

    // Computes the oracle and the bounds once, for what the stores hold now.
    void make_reference() { read_rows(), ask_oracle(true); }
    // In parts, for tests that ask the same rows several times or need no bounds: relative_rms() does not.
    void read_rows();
    void ask_oracle(bool with_bounds);
    // Empty when `out` is within all bounds of the reference, for the ISA level named; else the first complaint.
    std::string complaint(const std::vector<float>& out, const std::string& isa) const;
    double      relative_rms(const std::vector<float>& out) const;

private:
    static constexpr int   kMargin = 3;
    static constexpr float kCanary = 1234.5f;

    struct Reference {
        std::vector<double> out, bound_f32; // [dv]; Σ p|v| too
        struct Integer {
            std::vector<double> bound;        // [dv], worst case on top of bound_f32
            double              expected = 0; // Σ_x of the squared error
        };
        double                 freedom = 1; // effective number of independent errors
        std::array<Integer, 2> integer;     // of the path the case takes; 0: avx2, 1: avxvnni, avx512, neon
    };

    size_t q_at(int s, int t, int h) const {
        return (size_t(s) * c_.n_heads() + h) * (size_t(c_.n_tokens) * (c_.dk + 5)) + size_t(t) * (c_.dk + 5);
    }
    double slope(int h) const { // ALiBi as ggml has it
        if (c_.max_bias <= 0) return 1;
        int n = 1;
        while (2 * n <= c_.n_heads()) n *= 2;
        return h < n ? std::exp2(-c_.max_bias / n * (h + 1)) : std::exp2(-c_.max_bias / 2 / n * (2 * (h - n) + 1));
    }
    void make(const Format& f, Operand op, const StoreShape& shape, std::unique_ptr<TileStore>& store) {
        if (Status s = TileStore::create(f, op, shape, store); !s.ok()) throw std::runtime_error(s.message());
        const bool k = op == Operand::K;
        if (const double mean = k ? c_.k_mean : c_.v_mean; mean > 0 || c_.dense) {
            std::vector<std::shared_ptr<const Transform>> per_head;
            for (int h = 0; h < shape.n_kv_heads; h++)
                (k ? transforms_k_ : transforms_v_).emplace_back(random_, shape.head_dim, mean, c_.dense),
                    per_head.push_back((k ? transforms_k_ : transforms_v_).back().t);
            store->set_transforms(per_head);
        }
        for (int s = 0; s < shape.n_streams; s++)
            for (int h = 0; h < shape.n_kv_heads; h++)
                for (int64_t c = 0; c < shape.n_cells; c++) write_random(*store, s, h, c);
    }
    // V: row scales must matter.
    void write_random(TileStore& store, int s, int h, int64_t cell) {
        const bool         k  = store.operand() == Operand::K;
        const auto&        of = k ? transforms_k_ : transforms_v_;
        std::vector<float> x  = gaussian(random_, static_cast<size_t>(store.shape().head_dim), k ? 1 : std::exp2(random_.below(3) - 1));
        for (size_t i = 0; i < x.size() && !of.empty(); i++) x[i] += static_cast<float>(of[static_cast<size_t>(h)].mean[i]);
        if (store.write(s, h, cell, x.data()) != RowStatus::kOk) throw std::runtime_error("write");
        if (c_.exact()) original_[{k, s, h, cell}] = x;
    }
    // The cells that are asked for, in batches; the last one holds the queries.
    void write_exact_rows() {
        tables_         = std::make_unique<ExactTables>(c_.sink, c_.window, k_->shape(), v_->shape());
        const auto rows = [this](const ExactLedger::Token& t, Operand op, int h) {
            return original_.at({op == Operand::K, t.stream, h, t.cell}).data();
        };
        const auto token = [&](int s, int j) { return ExactLedger::Token{store_stream(s), store_cell(false, j), j % 40}; };
        const auto write = [&](int j0, int j1) {
            std::vector<ExactLedger::Token> tokens;
            for (int s = 0; s < c_.n_streams; s++)
                for (int j = j0; j < j1; j++) tokens.push_back(token(s, j));
            if (j1 > j0) tables_->write(tokens, rows);
        };
        const int before = c_.n_kv - c_.n_tokens;
        for (int j = 0; j < before; j += c_.written_by) {
            write(j, std::min(before, j + c_.written_by));
            if (!c_.reuse || j < 20) continue;
            const int          s = random_.below(c_.n_streams), again = random_.below(j);
            ExactLedger::Token t = token(s, again);
            for (int h = 0; h < k_->shape().n_kv_heads; h++) write_random(*k_, t.stream, h, t.cell), write_random(*v_, t.stream, h, t.cell);
            switch (random_.below(4)) {
            case 0: tables_->forget(t.stream, t.cell); break;
            case 1: tables_->adopt(t.stream, t.cell, random_.below(2) == 0, rows); break;
            default: tables_->write({t}, rows);
            }
        }
        write(before, c_.n_kv);
    }
    // Rows of one head: decoded (out of the transform), transformed, and fp16 scale.
    struct Rows {
        std::vector<double> decoded, transformed, scale;
        std::vector<float>  plain; // TileStore::read
        std::vector<bool>   exact; // not from the codes
    };
    // The rows as a query sees them that has some of them exactly.
    void put_exact_rows(Rows& r, bool v, int s, int h, int t) const {
        const size_t d = static_cast<size_t>(v ? c_.dv : c_.dk);
        for (int j = 0; j < c_.n_kv; j++) {
            const int64_t cell = store_cell(v, j);
            if (!tables_ || !tables_->exact(store_stream(s), cell, t, c_.n_tokens)) continue;
            const std::vector<float>& x = original_.at({!v, store_stream(s), store_head(h), cell});
            for (size_t i = 0; i < d; i++) r.decoded[size_t(j) * d + i] = r.plain[size_t(j) * d + i] = half_to_float(float_to_half(x[i]));
            r.exact[size_t(j)] = true;
        }
    }
    const CaseTransform* transform_of(bool v, int h) const {
        const auto& of = v ? transforms_v_ : transforms_k_;
        return of.empty() || !(v ? v_ : k_)->format().transformed() ? nullptr : &of[static_cast<size_t>(store_head(h))];
    }
    Rows rows_of(const TileStore& store, bool v, int s, int h) const {
        const int            d = store.shape().head_dim;
        const auto&          f = store.format();
        Rows                 r;
        std::vector<uint8_t> bytes(f.row_bytes(d));
        std::vector<float>   x(static_cast<size_t>(d));
        r.exact.assign(static_cast<size_t>(c_.n_kv), false);
        const CaseTransform* own = transform_of(v, h);
        for (int j = 0; j < c_.n_kv; j++) {
            store.read(store_stream(s), store_head(h), store_cell(v, j), x.data());
            r.plain.insert(r.plain.end(), x.begin(), x.end());
            if (!f.transformed()) {
                r.decoded.insert(r.decoded.end(), x.begin(), x.end());
                continue;
            }
            store.read_canonical(store_stream(s), store_head(h), store_cell(v, j), bytes.data());
            CodedRow coded;
            unpack_row(f, d, bytes.data(), coded);
            const std::vector<double> y = oracle::levels(f, d, coded), z = own ? own->decode(y) : oracle::inverse(y);
            r.transformed.insert(r.transformed.end(), y.begin(), y.end());
            r.decoded.insert(r.decoded.end(), z.begin(), z.end());
            r.scale.push_back(half_to_float(coded.scale));
        }
        return r;
    }
    std::vector<double> plain_f32(const float* q, const Rows& k, const Rows& v, const std::vector<float>& bias, const float* sink) const;
    double              f32_score_error(const std::vector<double>& q, const CaseTransform* of_k, const Rows& k) const;
    void integer_bounds(const std::vector<double>& q, int kv_head, const Rows& k, const Rows& v, const oracle::Attended& want,
                        Reference& ref) const;

    AttentionCase              c_;
    TileCounts                 v_tiles_;
    Random                     random_;
    std::vector<CaseTransform> transforms_k_, transforms_v_;                     // [head of the store]; empty: the default
    std::map<std::tuple<bool, int, int, int64_t>, std::vector<float>> original_; // (K?, stream, head, cell), where exact rows are kept
    std::unique_ptr<ExactTables>                                      tables_;
    std::unique_ptr<TileStore>                                        k_, v_;
    std::vector<float>                                                q_, sinks_, mask32_;
    std::vector<uint16_t>                                             mask16_;
    std::vector<Rows>                                                 rows_;      // [stream][KV head][K, V], out of the codes
    std::vector<Reference>                                            reference_; // [stream][token][head]
    double                                                            plain_error_ = 0;
};

// f32 as one would write it down: scores, maximum, weights, sum.
inline std::vector<double> AttentionData::plain_f32(const float* q, const Rows& k, const Rows& v, const std::vector<float>& bias,
                                                    const float* sink) const {
    const int          n = c_.n_kv, dk = c_.dk, dv = c_.dv;
    std::vector<float> s(static_cast<size_t>(n)), o(static_cast<size_t>(dv), 0.0f);
    float              top = sink ? *sink : -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) {
        const float* const key = &k.plain[size_t(j) * dk];
        float              dot = 0;
        for (int i = 0; i < dk; i++) dot += q[i] * key[i];
        s[j] = dot * static_cast<float>(c_.scale());
        if (c_.softcap != 0) s[j] = c_.softcap * std::tanh(s[j] / c_.softcap);
        s[j] += bias[j];
        top = std::max(top, s[j]);
    }
    if (std::isinf(top)) return std::vector<double>(static_cast<size_t>(dv), 0.0);
    if (sink) sum = std::exp(*sink - top);
    for (int j = 0; j < n; j++) {
        const float* const value = &v.plain[size_t(j) * dv];
        const float        p     = std::exp(s[j] - top);
        sum += p;
        for (int x = 0; x < dv; x++) o[x] += p * value[x];
    }
    std::vector<double> out;
    for (const float x : o) out.push_back(x / sum);
    return out;
}

// What f32 may add to a score where there is a transform of its own, or an exact row.
inline double AttentionData::f32_score_error(const std::vector<double>& q, const CaseTransform* of_k, const Rows& k) const {
    if (!of_k && !tables_) return 0;
    const size_t              d = q.size();
    const std::vector<double> p = of_k && c_.dense ? of_k->absolute(q, true) : std::vector<double>{};
    const auto products = [d](const double* a, const double* b) { return sum_of(d, [a, b](size_t i) { return std::fabs(a[i] * b[i]); }); };
    double     mean = of_k ? products(q.data(), of_k->mean.data()) : 0, key = 0;
    for (size_t j = 0; j < static_cast<size_t>(c_.n_kv); j++) {
        if (k.exact[j]) key = std::max(key, products(q.data(), &k.decoded[j * d]));
        else if (!p.empty()) key = std::max(key, products(p.data(), &k.transformed[j * d]));
    }
    return (static_cast<double>(d) + 4) * 0x1p-24 * c_.scale() * (mean + key);
}

inline double largest(const std::vector<double>& x) {
    double top = 0;
    for (const double v : x) top = std::max(top, std::fabs(v));
    return top;
}
// What avx2 maps to 128 (few rows) or 126.
inline double lane_bound(const std::vector<double>& y, bool few) {
    double b = 0;
    for (size_t g = 0; g < y.size(); g += 16)
        for (size_t h = 0; h < 4; h += 2) { // an int16 lane: dims {g + h, +1} of each of four dwords
            double sum = 0, positive = 0, negative = 0;
            for (size_t w = 0; w < 16; w += 4) {
                const double x = y[g + w + h], z = y[g + w + h + 1];
                if (few || w % 8 == 0) positive = negative = 0;
                positive += std::max(x, 0.0) + std::max(z, 0.0), negative += std::max(-x, 0.0) + std::max(-z, 0.0);
                b = std::max({b, positive, negative});
                sum += std::fabs(x) + std::fabs(z);
            }
            if (few) b = std::max(b, sum * 128 / 258);
        }
    return b;
}
// peak: max|q'|² d / |q'|². Close to the limit either answer may be the kernel's: no second pass.
inline bool query_twice(const Format& f, double peak) {
    static const std::map<std::string, double> decibels = {{"turbo2", 9.30},   {"turbo3", 14.62},  {"turbo4", 20.22},
                                                           {"turbo2t", 10.80}, {"turbo3t", 16.22}, {"turbo4t", 22.03}};
    if (f.kind == FormatKind::Uniform) return true;
    return peak > 1.01 * (std::pow(10, 0.01) - 1) * 12 * 127 * 127 * std::pow(10, -decibels.at(f.name) / 10);
}

inline void AttentionData::integer_bounds(const std::vector<double>& q, int kv_head, const Rows& k, const Rows& v,
                                          const oracle::Attended& want, Reference& ref) const {
    const int            n = c_.n_kv, dk = c_.dk, dv = c_.dv;
    const bool           k_codes = k_->format().transformed(), v_codes = v_->format().transformed();
    const bool           few   = c_.few_rows(); // many rows: both operands packed, or none
    const bool           k_int = k_codes && (few || v_codes), v_int = v_codes && (few || k_codes);
    const bool           v_twice = v_->format().kind == FormatKind::Uniform;
    const CaseTransform *of_k = transform_of(false, kv_head), *of_v = transform_of(true, kv_head);
    std::vector<double>  mass(static_cast<size_t>(dv), 0.0), spread(static_cast<size_t>(n), 0.0); // Σ p|v|; |v_j - o|²
    for (int j = 0; j < n; j++) {
        const double *const value = &v.decoded[size_t(j) * dv], *const out = want.out.data();
        const double weight = want.weight[j];
        for (int x = 0; x < dv && weight != 0; x++) mass[x] += weight * std::fabs(value[x]);
        spread[j] = sum_of(dv, [value, out](size_t x) { return (value[x] - out[x]) * (value[x] - out[x]); });
    }
    const std::vector<double> y = !k_int ? std::vector<double>{} : of_k ? of_k->query(q) : oracle::forward(q);
    for (int isa = 0; isa < 2; isa++) {
        Reference::Integer& r     = ref.integer[isa];
        double              delta = 0;
        if (k_int) {
            const double top = largest(y), b = lane_bound(y, few);
            const double step = isa == 1 ? top / 127 : b / 126;
            double       one = 0, two = 0; // norms of q'
            for (const double x : y) one += std::fabs(x), two += x * x;
            std::vector<double> e, random; // worst case; what it would be without the step's own error
            for (const double x : y) {
                random.push_back(std::max(step / 2, isa == 0 && few ? std::fabs(x) - 127 * b / 128 : 0.0));
                e.push_back(random.back() + (few || two == 0 ? 0.0 : step / 2 * std::fabs(x) * one / two));
            }
            if (query_twice(k_->format(), dk * top * top / two)) {
                const double bound = lane_bound(e, few), rest = isa == 1 ? largest(e) / 127 : bound / 126;
                for (int i = 0; i < dk; i++) {
                    random[i] = (isa == 0 && few ? bound / 128 : rest / 2) + 0x1p-23 * std::fabs(y[i]);
                    e[i]      = random[i] + (few ? 0.0 : rest / 2 * std::sqrt(dk));
                }
            }
            for (int j = 0; j < n; j++) {
                if (want.weight[j] == 0 || k.exact[size_t(j)]) continue;
                const double *const key = &k.transformed[size_t(j) * dk], *const most = e.data(), *const usual = random.data();
                const double variance = sum_of(dk, [=](size_t i) { return usual[i] * key[i] * usual[i] * key[i]; }) / 3;
                delta                 = std::max(delta, c_.scale() * sum_of(dk, [=](size_t i) { return most[i] * std::fabs(key[i]); }));
                r.expected += want.weight[j] * want.weight[j] * c_.scale() * c_.scale() * variance * spread[j];
            }
        }
        const double        grow = std::exp(2 * delta);
        std::vector<double> off(static_cast<size_t>(dv), 0.0); // transformed domain
        for (int tile = 0; v_int && tile < n; tile += kTileTokens) {
            std::array<double, kTileTokens> w{};
            for (int t = 0; t < kTileTokens && tile + t < n; t++)
                w[t] = v.exact[size_t(tile + t)] ? 0 : want.weight[tile + t] * v.scale[tile + t];
            double step = 0;
            for (int t = 0; t < kTileTokens; t += 8) {
                for (int i = 0; i < 8 && isa == 1; i++) step = std::max(step, w[t + i] / 255);
                for (int h = 0; h < 4 && isa == 0; h += 2)
                    step = std::max(step, (w[t + h] + w[t + h + 1] + w[t + h + 4] + w[t + h + 5]) / 255.4);
            }
            if (v_twice) step *= isa == 1 ? 1.5 / 255 : 6 / 255.4;
            for (int t = 0; t < kTileTokens && tile + t < n; t++) {
                if (w[t] == 0) continue;
                const double* const y_t     = &v.transformed[size_t(tile + t) * dv]; // scale * unit * int8 level
                const double* const columns = of_v && c_.dense ? of_v->columns.data() : nullptr;
                const double        half = step / 2 / v.scale[tile + t], most = half + (v_twice ? 0x1p-22 * want.weight[tile + t] : 0.0);
                for (int x = 0; x < dv; x++) off[x] += most * std::fabs(y_t[x]);
                r.expected += half * half / 3 * sum_of(dv, [=](size_t x) { return y_t[x] * y_t[x] * (columns ? columns[x] : 1.0); });
            }
        }
        r.bound.assign(static_cast<size_t>(dv), 0.0);
        if (of_v && c_.dense) {
            const std::vector<double> sum = of_v->absolute(off, false);
            for (int x = 0; x < dv; x++) r.bound[x] = (grow - 1) * mass[x] + grow * sum[x];
            continue;
        }
        int at = 0;
        for (const int size : oracle::blocks(dv)) { // entries of T^-1 are +-1/sqrt(n) inside a block
            double sum = 0;
            for (int x = at; x < at + size; x++) sum += off[x];
            for (int x = at; x < at + size; x++) r.bound[x] = (grow - 1) * mass[x] + grow * sum / std::sqrt(size);
            at += size;
        }
    }
    ref.bound_f32    = mass;
    const double f32 = 2 * 3e-6 + std::expm1(2 * f32_score_error(q, of_k, k));
    for (double& m : ref.bound_f32) m *= f32;
    if (of_v && c_.dense) {
        std::vector<double> sum_y(static_cast<size_t>(dv), 0.0); // Σ p|y|
        for (int j = 0; j < n; j++)
            for (int x = 0; x < dv && !v.exact[size_t(j)]; x++) sum_y[x] += want.weight[j] * std::fabs(v.transformed[size_t(j) * dv + x]);
        const std::vector<double> off = of_v->absolute(sum_y, false);
        for (int x = 0; x < dv; x++) ref.bound_f32[x] += (dv + 2) * 0x1p-24 * off[x];
    }
    double concentration = 0;
    for (const double p : want.weight) concentration += p * p;
    ref.freedom = concentration > 0 ? std::clamp(1 / concentration - 1, 1.0, dk / 2.0) : 1.0;
    if (tables_) { // the keys that err may be few: (Σ a)² / Σ a² of their parts of the error
        double one = 0, two = 0;
        for (int j = 0; j < n; j++) {
            const double a = k.exact[size_t(j)] ? 0 : want.weight[j] * want.weight[j] * spread[j];
            one += a, two += a * a;
        }
        ref.freedom = two > 0 ? std::clamp(one * one / two, 1.0, dk / 2.0) : 1.0;
    }
}

inline void AttentionData::read_rows() {
    rows_.clear();
    for (int s = 0; s < c_.n_streams; s++)
        for (int kv = 0; kv < c_.n_kv_heads; kv++) rows_.push_back(rows_of(*k_, false, s, kv)), rows_.push_back(rows_of(*v_, true, s, kv));
}

inline void AttentionData::ask_oracle(bool with_bounds) {
    reference_.assign(size_t(c_.n_streams) * c_.n_tokens * c_.n_heads(), {});
    plain_error_ = 0;
    for (int s = 0; s < c_.n_streams; s++)
        for (int kv = 0; kv < c_.n_kv_heads; kv++) {
            Rows k = rows_[2 * (size_t(s) * c_.n_kv_heads + kv)], v = rows_[2 * (size_t(s) * c_.n_kv_heads + kv) + 1];
            for (int t = 0; t < c_.n_tokens; t++) {
                if (tables_) {
                    k = rows_[2 * (size_t(s) * c_.n_kv_heads + kv)], v = rows_[2 * (size_t(s) * c_.n_kv_heads + kv) + 1];
                    put_exact_rows(k, false, s, kv, t), put_exact_rows(v, true, s, kv, t);
                }
                for (int h = kv * c_.group; h < (kv + 1) * c_.group; h++) {
                    const std::vector<double> q(query(s, t, h), query(s, t, h) + c_.dk);
                    std::vector<double>       bias(static_cast<size_t>(c_.n_kv), 0.0);
                    if (c_.mask != MaskType::kNone)
                        for (int j = 0; j < c_.n_kv; j++)
                            bias[j] = std::isinf(mask32_[mask_at(s, t) + j]) ? -INFINITY : slope(h) * mask32_[mask_at(s, t) + j];
                    const float* const     sink = c_.sinks ? &sinks_[h] : nullptr;
                    const oracle::Attended want = oracle::attend(q, k.decoded, v.decoded, bias, c_.scale(), c_.softcap, sink);
                    Reference&             ref  = reference_[(size_t(s) * c_.n_tokens + t) * c_.n_heads() + h];
                    ref.out                     = want.out;
                    if (!with_bounds) continue;
                    integer_bounds(q, kv, k, v, want, ref);
                    const std::vector<double> plain = plain_f32(query(s, t, h), k, v, {bias.begin(), bias.end()}, sink);
                    for (int x = 0; x < c_.dv; x++) plain_error_ = std::max(plain_error_, std::fabs(plain[x] - want.out[x]));
                }
            }
        }
}

inline std::string AttentionData::complaint(const std::vector<float>& out, const std::string& isa) const {
    const int  which   = isa == "avx2" ? 0 : isa == "scalar" ? -1 : 1;
    const bool integer = which >= 0;
    double     squares = 0, expected = 0, slack = 0, variance = 0;
    for (int s = 0; s < c_.n_streams; s++)
        for (int t = 0; t < c_.n_tokens; t++)
            for (int h = 0; h < c_.n_heads(); h++) {
                const Reference& ref = reference_[(size_t(s) * c_.n_tokens + t) * c_.n_heads() + h];
                const float*     got = row(out, s, t, h);
                for (int x = 0; x < c_.dv; x++) {
                    const double f32 = 2 * plain_error_ + 1e-6 + ref.bound_f32[x], error = got[x] - ref.out[x];
                    const double bound = f32 + (integer ? ref.integer[which].bound[x] : 0.0);
                    if (!(std::fabs(error) <= bound)) {
                        std::ostringstream m;
                        m << isa << ": stream " << s << ", token " << t << ", head " << h << ", dim " << x << ": " << got[x] << ", oracle "
                          << ref.out[x] << ", off by " << error << ", allowed " << bound << " (" << c_.name() << ")";
                        return m.str();
                    }
                    squares += error * error, slack += f32 * f32;
                }
                if (integer) {
                    const double e = ref.integer[which].expected;
                    expected += e, variance += 2 * e * e / ref.freedom;
                }
                for (int x = c_.dv; x < c_.dv + kMargin; x++)
                    if (got[x] != kCanary) return isa + ": wrote behind a row (" + c_.name() + ")";
            }
    const double allowed = std::sqrt(expected + 5 * std::sqrt(variance)) + std::sqrt(slack);
    if (std::sqrt(squares) <= allowed) return {};
    std::ostringstream m;
    m << isa << ": root of the summed squared error " << std::sqrt(squares) << ", allowed " << allowed << " (" << c_.name() << ")";
    return m.str();
}

inline double AttentionData::relative_rms(const std::vector<float>& out) const {
    double squares = 0, size = 0;
    for (int s = 0; s < c_.n_streams; s++)
        for (int t = 0; t < c_.n_tokens; t++)
            for (int h = 0; h < c_.n_heads(); h++)
                for (int x = 0; x < c_.dv; x++) {
                    const double want = reference_[(size_t(s) * c_.n_tokens + t) * c_.n_heads() + h].out[x];
                    squares += (row(out, s, t, h)[x] - want) * (row(out, s, t, h)[x] - want), size += want * want;
                }
    return std::sqrt(squares / size);
}

// Levels of this machine by name; tests loop over them.
inline std::vector<std::string> isa_names() {
    std::vector<std::string> out;
    for (const KernelTable* k : available_kernels()) out.push_back(k->name);
    return out;
}

class IsaRestorer { // leaves the chosen level as it was
public:
    ~IsaRestorer() { (void)set_isa(before_).ok(); }

private:
    std::string before_ = kernels().name;
};

// On every level that is here, and with other types of mask or numbers of threads that have the same reference.
inline void expect_within_bounds(const AttentionCase& c, const std::vector<MaskType>& masks, const std::vector<int>& threads) {
    IsaRestorer   restore;
    AttentionData data(c);
    data.make_reference();
    for (const std::string& isa : isa_names())
        for (const MaskType mask : masks)
            for (const int n : threads) {
                ASSERT_TRUE(set_isa(isa).ok());
                data.ask_with(mask, n);
                EXPECT_EQ(data.complaint(data.run(), isa), "");
            }
}
inline void expect_within_bounds(const AttentionCase& c) { expect_within_bounds(c, {c.mask}, {c.threads}); }

} // namespace tightkv::test
