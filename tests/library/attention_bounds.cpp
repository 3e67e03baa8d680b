// What attention may differ from the fp64 oracle, derived; the oracle asked, and results held against it.
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
#include <algorithm>
#include <sstream>

#include "attention_case.h"

namespace tightkv::test {
namespace {

double largest(const std::vector<double>& x) {
    double top = 0;
    for (const double v : x) top = std::max(top, std::fabs(v));
    return top;
}
// What avx2 maps to 128 (few rows) or 126.
double lane_bound(const std::vector<double>& y, bool few) {
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
bool query_twice(const Format& f, double peak) {
    static const std::map<std::string, double> decibels = {{"turbo2", 9.30},   {"turbo3", 14.62},  {"turbo4", 20.22},
                                                           {"turbo2t", 10.80}, {"turbo3t", 16.22}, {"turbo4t", 22.03}};
    if (f.kind == FormatKind::Uniform) return true;
    return peak > 1.01 * (std::pow(10, 0.01) - 1) * 12 * 127 * 127 * std::pow(10, -decibels.at(f.name) / 10);
}

} // namespace

// f32 as one would write it down: scores, maximum, weights, sum.
std::vector<double> AttentionData::plain_f32(const float* q, const Rows& k, const Rows& v, const std::vector<float>& bias,
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
double AttentionData::f32_score_error(const std::vector<double>& q, const CaseTransform* of_k, const Rows& k) const {
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

void AttentionData::integer_bounds(const std::vector<double>& q, int kv_head, const Rows& k, const Rows& v, const oracle::Attended& want,
                                   Reference& ref) const {
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

double AttentionData::slope(int h) const {
    if (c_.max_bias <= 0) return 1;
    int n = 1;
    while (2 * n <= c_.n_heads()) n *= 2;
    return h < n ? std::exp2(-c_.max_bias / n * (h + 1)) : std::exp2(-c_.max_bias / 2 / n * (2 * (h - n) + 1));
}

void AttentionData::ask_oracle(bool with_bounds) {
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

std::string AttentionData::complaint(const std::vector<float>& out, const std::string& isa) const {
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

double AttentionData::relative_rms(const std::vector<float>& out) const {
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

std::vector<std::string> isa_names() {
    std::vector<std::string> out;
    for (const KernelTable* k : available_kernels()) out.push_back(k->name);
    return out;
}

void expect_within_bounds(const AttentionCase& c, const std::vector<MaskType>& masks, const std::vector<int>& threads) {
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

} // namespace tightkv::test
