#include "attention_check.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/half.h"
#include "cache/tile_store.h"
#include "codec/oracle.h"

namespace tightkv::bench {

namespace {

constexpr double kUnit     = 0x1p-24;
constexpr double kExpError = 1e-4; // of a cubic exp2
constexpr double kMostWork = 3e8;  // multiplications of one check_output

double norm(const double* x, int d) { return std::sqrt(std::inner_product(x, x + d, x, 0.0)); }

// Values of one operand's rows, and the fp16 scales of formats that have them.
void append_rows(const TileStore& store, int stream, int kv_head, int64_t n_kv, std::vector<double>& x, std::vector<double>* scale) {
    const Format&        f = store.format();
    const int            d = store.shape().head_dim;
    std::vector<uint8_t> bytes(f.row_bytes(d));
    std::vector<float>   plain(static_cast<size_t>(d));
    CodedRow             coded;
    x.reserve(static_cast<size_t>(n_kv * d));
    for (int64_t j = 0; j < n_kv; j++) {
        if (!f.transformed()) {
            store.read(stream, kv_head, j, plain.data());
            x.insert(x.end(), plain.begin(), plain.end());
            continue;
        }
        store.read_canonical(stream, kv_head, j, bytes.data());
        unpack_row(f, d, bytes.data(), coded);
        const std::vector<double> y = oracle::levels(f, d, coded);
        x.insert(x.end(), y.begin(), y.end());
        if (scale) scale->push_back(half_to_float(coded.scale));
    }
}

// In parts of the step of one pass: turbo8 takes two, whose steps are at most 1/42 (weights of avx2; queries 1/63): attend_common.h.
double integer_step(const Format& f) { return !f.transformed() ? 0 : f.kind == FormatKind::Uniform ? 1.0 / 42 : 1; }

// The step that integer queries need at most.
double query_step(const std::vector<double>& q) {
    std::vector<double> size;
    for (const double x : q) size.push_back(std::fabs(x));
    std::partial_sort(size.begin(), size.begin() + 8, size.end(), std::greater<>());
    return std::max(size[0] + size[1], std::accumulate(size.begin(), size.begin() + 8, 0.0) * 128 / 258) / 126;
}

// And integer weights of the keys [begin, end), at most 64.
double weight_step(const std::vector<double>& p, const std::vector<double>& v_scale, int64_t begin, int64_t end) {
    double w[kTileTokens] = {};
    for (int64_t j = begin; j < end; j++) w[j - begin] = p[j] * (v_scale.empty() ? 1.0 : v_scale[j]);
    std::partial_sort(w, w + 4, w + kTileTokens, std::greater<>());
    return (w[0] + w[1] + w[2] + w[3]) / 255.4;
}

} // namespace

HeadRows rows_of(const TileStore& k, const TileStore& v, int stream, int kv_head, int64_t n_kv) {
    HeadRows r;
    append_rows(k, stream, kv_head, n_kv, r.k, nullptr);
    append_rows(v, stream, kv_head, n_kv, r.v, &r.v_scale);
    r.k_transformed = k.format().transformed(), r.v_transformed = v.format().transformed();
    r.k_step = integer_step(k.format()), r.v_step = integer_step(v.format());
    return r;
}

RowVerdict check_row(const HeadRows& rows, const float* q, const float* out, int d, int64_t n, double scale) {
    std::vector<double> query(q, q + d), got(out, out + d);
    if (rows.k_transformed) query = oracle::forward(query);
    if (rows.v_transformed) got = oracle::forward(got);
    const std::span        k(rows.k.data(), static_cast<size_t>(n * d)), v(rows.v.data(), static_cast<size_t>(n * d));
    const oracle::Attended want = oracle::attend(query, k, v, std::vector<double>(static_cast<size_t>(n), 0.0), scale, 0, nullptr);

    const double        q_step   = rows.k_step * query_step(query);
    double              expected = 0, concentration = 0, longest_k = 0; // expected: of the squared error
    std::vector<double> mass(static_cast<size_t>(d), 0.0);              // Σ p|v|
    for (int64_t tile = 0; tile < n; tile += kTileTokens) {
        const int64_t end    = std::min(n, tile + kTileTokens);
        const double  w_step = rows.v_step * weight_step(want.weight, rows.v_scale, tile, end);
        for (int64_t j = tile; j < end; j++) {
            const double *kj = k.data() + j * d, *vj = v.data() + j * d;
            const double  p = want.weight[j], k_norm = norm(kj, d), v_scale = rows.v_scale.empty() ? 1.0 : rows.v_scale[j];
            double        v_square = 0, off_square = 0; // |v_j|², |v_j - o|²
            for (int i = 0; i < d; i++) {
                mass[i] += p * std::fabs(vj[i]);
                v_square += vj[i] * vj[i], off_square += (vj[i] - want.out[i]) * (vj[i] - want.out[i]);
            }
            expected += p * p * scale * scale * q_step * q_step / 12 * k_norm * k_norm * off_square;
            if (v_scale > 0) expected += w_step * w_step / 12 * v_square / (v_scale * v_scale);
            concentration += p * p, longest_k = std::max(longest_k, k_norm);
        }
    }
    const double freedom = std::clamp(1 / concentration - 1, 1.0, d / 2.0);
    const double f32     = 2 * kExpError + 6 * kUnit * std::sqrt(static_cast<double>(n)) +
                       12 * kUnit * std::sqrt(static_cast<double>(d)) * scale * norm(query.data(), d) * longest_k;
    double off = 0;
    for (int i = 0; i < d; i++) off += (got[i] - want.out[i]) * (got[i] - want.out[i]);
    const double size = norm(want.out.data(), d);
    return {std::sqrt(off) / size,
            (std::sqrt(expected * (1 + 5 * std::sqrt(2 / freedom))) + f32 * norm(mass.data(), d)) / size + rows.other};
}

Verdict check_output(const AttentionData& data, const std::function<HeadRows(int)>& rows, const float* out) {
    const AttentionShape& s      = data.shape;
    const double          budget = kMostWork / (static_cast<double>(s.n_kv) * s.head_dim * 4);
    const std::set<int>   heads{0, s.n_kv_heads - 1};
    const int             n_tokens = std::clamp(static_cast<int>(budget / (static_cast<double>(heads.size()) * s.group())), 1, 5);
    std::set<int>         tokens{s.n_tokens - 1};
    for (int i = 0; i + 1 < n_tokens; i++) tokens.insert(s.n_tokens * i / n_tokens);

    Verdict v;
    double  closest = -1;
    for (const int kv_head : heads) {
        const HeadRows r = rows(kv_head);
        for (const int token : tokens)
            for (int h = kv_head * s.group(); h < (kv_head + 1) * s.group(); h++) {
                const size_t     at   = s.row(token, h);
                const RowVerdict row  = check_row(r, data.q.data() + at, out + at, s.head_dim, s.visible(token), s.scale());
                const double     near = row.ok() ? row.error / row.bound : 1e300; // NaN included
                v.rows++;
                v.ok = v.ok && row.ok();
                if (near <= closest) continue;
                closest = near, v.max_rel_error = row.error, v.bound = row.bound;
                v.where = "token " + std::to_string(token) + ", head " + std::to_string(h);
            }
    }
    // The rest must at least be numbers.
    for (size_t i = 0; i < s.rows_floats() && v.ok; i++)
        if (!std::isfinite(out[i])) v.ok = false, v.max_rel_error = NAN, v.where = "value " + std::to_string(i) + " is not finite";
    return v;
}

} // namespace tightkv::bench
