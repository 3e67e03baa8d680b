// Textbook double precision, no speed.
#include "codec/oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/half.h"
#include "codec/codebook_tables.h"
#include "codec/trellis.h"

namespace tightkv::oracle {

namespace {

// S1, S2 / sqrt(n) around the blocks' Hadamard matrices: y = S2 H S1 x / sqrt(n), x = S1 H S2 y / sqrt(n).
std::vector<double> rotate(std::span<const double> in, int before, int after, bool by_definition) {
    const int           d = static_cast<int>(in.size());
    std::vector<double> x(in.begin(), in.end());
    for (int i = 0; i < d; i++) x[i] *= sign(i, before);
    int at = 0;
    for (const int n : blocks(d)) {
        double* const b = x.data() + at;
        if (by_definition) {
            std::vector<double> y(n, 0.0);
            for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++) y[i] += std::popcount(static_cast<unsigned>(i & j)) % 2 ? -b[j] : b[j];
            std::copy(y.begin(), y.end(), b);
        } else {
            for (int h = n / 2; h >= 1; h /= 2) // strides downwards: another order than the codec's
                for (int i = 0; i < n; i++)
                    if (!(i & h)) {
                        const double lo = b[i], hi = b[i + h];
                        b[i] = lo + hi, b[i + h] = lo - hi;
                    }
        }
        const double root = std::sqrt(static_cast<double>(n));
        for (int i = 0; i < n; i++) b[i] *= sign(at + i, after) / root;
        at += n;
    }
    return x;
}

double norm_of(std::span<const double> x) {
    double top = 0, sum = 0;
    for (const double v : x) top = std::max(top, std::fabs(v));
    if (top == 0) return 0;
    for (const double v : x) sum += (v / top) * (v / top);
    return top * std::sqrt(sum);
}

// ---- trellis formats, from the formulas in docs/formats.md

// Coordinates of a segment in the order of its path.
std::vector<size_t> segment_order(size_t d, size_t segment) {
    std::vector<size_t> order(d / 4);
    for (size_t c = segment; c < d; c += 4) order[c % 32 / 16 * (d / 8) + c / 32 * 4 + c % 16 / 4] = c;
    return order;
}

int branch_level(int bits, int n, int p, int o) {
    switch (bits) {
    case 2: return kTrellis2.table[static_cast<size_t>((4 * n) ^ p ^ (o % 2 ? 4 : 0))];
    case 3: return kTrellis3.table[static_cast<size_t>((2 * n) ^ p)];
    default: return kTrellis4.table[static_cast<size_t>(n)] + kTrellis4.second[static_cast<size_t>(p % 8)];
    }
}

double distance(const Format& f, double position, int level) {
    const TrellisMetric& m   = trellis_metric(f.bits);
    const double         cap = std::sqrt(m.cap * 32768.0) / std::exp2(m.doublings);
    return std::min(std::fabs(position - level * unit(f) * kTrellisSteps), cap);
}

} // namespace

PathCost path_cost(const Format& f, std::span<const double> position, std::span<const uint8_t> codes) {
    const std::vector<int> level = levels_of(f, codes);
    PathCost               cost;
    for (size_t i = 0; i < level.size(); i++) {
        const double e = distance(f, position[i], level[i]);
        cost.sum += e * e, cost.reach += e;
    }
    return cost;
}

// All cyclic paths: for every pair of codes (p, o) before the first value, the cheapest way through the pairs that comes back to it.
std::vector<uint8_t> best_path(const Format& f, std::span<const double> position) {
    const int            codes = 1 << f.bits, olds = f.bits == 2 ? codes : 1, states = codes * olds; // state = p + codes * o
    const auto           branches = static_cast<size_t>(states * codes);
    std::vector<uint8_t> out(position.size());
    for (size_t s = 0; s < 4; s++) {
        const std::vector<size_t> order = segment_order(position.size(), s);
        std::vector<double>       square(order.size() * branches); // [value][state][n]: of the distance, whatever pair the path began with
        for (size_t i = 0; i < order.size(); i++)
            for (int state = 0; state < states; state++)
                for (int n = 0; n < codes; n++) {
                    const double e = distance(f, position[order[i]], branch_level(f.bits, n, state % codes, state / codes));
                    square[i * branches + static_cast<size_t>(state * codes + n)] = e * e;
                }
        double                        least = std::numeric_limits<double>::infinity();
        std::vector<std::vector<int>> from(order.size(), std::vector<int>(static_cast<size_t>(states)));
        for (int start = 0; start < states; start++) {
            std::vector<double> sum(static_cast<size_t>(states), std::numeric_limits<double>::infinity());
            sum[static_cast<size_t>(start)] = 0;
            for (size_t i = 0; i < order.size(); i++) {
                std::vector<double> next(sum.size(), std::numeric_limits<double>::infinity());
                for (int state = 0; state < states; state++) {
                    if (std::isinf(sum[static_cast<size_t>(state)])) continue;
                    for (int n = 0; n < codes; n++) {
                        const double cost = sum[static_cast<size_t>(state)] + square[i * branches + static_cast<size_t>(state * codes + n)];
                        const auto   to   = static_cast<size_t>(n + codes * (olds > 1 ? state % codes : 0));
                        if (cost < next[to]) next[to] = cost, from[i][to] = state;
                    }
                }
                sum = next;
            }
            if (sum[static_cast<size_t>(start)] >= least) continue;
            least = sum[static_cast<size_t>(start)];
            for (size_t i = order.size(), state = static_cast<size_t>(start); i-- > 0; state = static_cast<size_t>(from[i][state]))
                out[order[i]] = static_cast<uint8_t>(static_cast<int>(state) % codes);
        }
    }
    return out;
}

std::vector<int> levels_of(const Format& f, std::span<const uint8_t> codes) {
    std::vector<int> out(codes.size());
    for (size_t i = 0; i < codes.size() && f.kind != FormatKind::Trellis; i++) out[i] = level(f, codes[i]);
    for (size_t s = 0; s < 4 && f.kind == FormatKind::Trellis; s++) {
        const std::vector<size_t> order = segment_order(codes.size(), s);
        const size_t              n     = order.size();
        for (size_t i = 0; i < n; i++)
            out[order[i]] = branch_level(f.bits, codes[order[i]], codes[order[(i + n - 1) % n]], codes[order[(i + n - 2) % n]]);
    }
    return out;
}

std::vector<int> blocks(int head_dim) {
    std::vector<int> out;
    for (unsigned rest = static_cast<unsigned>(head_dim); rest > 0; rest -= static_cast<unsigned>(out.back()))
        out.push_back(static_cast<int>(std::bit_floor(rest)));
    return out;
}

double sign(int index, int which) { // top bit of splitmix64("tightkv1" + 2 index + which)
    static const std::vector<double> signs = [] {
        uint64_t seed = 0;
        for (const char c : {'t', 'i', 'g', 'h', 't', 'k', 'v', '1'}) seed = seed << 8 | static_cast<uint8_t>(c);
        std::vector<double> out;
        for (uint64_t i = 0; i < 2 * kMaxHeadDim; i++) {
            uint64_t z = seed + i + 0x9e3779b97f4a7c15ull;
            z          = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
            z          = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
            out.push_back((z ^ (z >> 31)) >= (1ull << 63) ? -1.0 : 1.0);
        }
        return out;
    }();
    return signs.at(static_cast<size_t>(2 * index + which));
}

double unit(const Format& f) {
    if (f.kind == FormatKind::Trellis) return trellis(f.bits).unit;
    switch (f.bits) {
    case 2: return static_cast<float>(1.510418 / 127);
    case 3: return static_cast<float>(2.151946 / 127);
    case 4: return static_cast<float>(2.732590 / 127);
    default: return 1.0 / 32;
    }
}

int level(const Format& f, uint8_t code) {
    return f.kind == FormatKind::Uniform ? static_cast<int8_t>(code) : codebook(f.bits).level[code];
}

std::vector<double> forward(std::span<const double> x) { return rotate(x, 0, 1, false); }
std::vector<double> inverse(std::span<const double> y) { return rotate(y, 1, 0, false); }
std::vector<double> forward_by_definition(std::span<const double> x) { return rotate(x, 0, 1, true); }

Coded encode_once(const Format& f, std::span<const double> x) {
    const size_t              d = x.size();
    const std::vector<double> y = forward(x);
    Coded                     c;
    c.norm = norm_of(y);
    c.position.assign(d, 0.0), c.codes.assign(d, 0);
    if (c.norm == 0) return c;
    if (f.kind == FormatKind::Trellis) {
        const double limit = trellis_metric(f.bits).limit;
        for (size_t i = 0; i < d; i++)
            c.position[i] = std::clamp(y[i] / c.norm * std::sqrt(static_cast<double>(d)) * kTrellisSteps, -limit, limit);
        c.codes = best_path(f, c.position);
        c.scale = scale_for(f, c.norm, c.codes);
        return c;
    }
    double top = 0;
    for (const double v : y) top = std::max(top, std::fabs(v));
    for (size_t i = 0; i < d; i++) {
        if (f.kind == FormatKind::Uniform) {
            c.position[i] = y[i] / top * 127;
            c.codes[i]    = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(c.position[i])));
        } else {
            c.position[i]        = y[i] / c.norm * std::sqrt(static_cast<double>(d)) * kThresholdSteps;
            const Codebook& book = codebook(f.bits);
            for (int k = 0; k + 1 < book.n; k++) c.codes[i] += std::nearbyint(c.position[i]) > book.threshold[k];
        }
    }
    c.scale = scale_for(f, c.norm, c.codes);
    return c;
}

double edge_distance(const Format& f, double position) {
    if (f.kind == FormatKind::Uniform) return std::fabs(position - std::floor(position) - 0.5);
    double          nearest = std::numeric_limits<double>::infinity();
    const Codebook& book    = codebook(f.bits);
    // positions are rounded to integers before they are compared with the integer threshold
    for (int k = 0; k + 1 < book.n; k++) nearest = std::min(nearest, std::fabs(position - (book.threshold[k] + 0.5)));
    return nearest;
}

double scale_for(const Format& f, double norm, std::span<const uint8_t> codes) {
    double sum = 0;
    for (const int l : levels_of(f, codes)) sum += static_cast<double>(l) * l;
    return sum == 0 ? 0 : norm / (unit(f) * std::sqrt(sum));
}

std::vector<double> levels(const Format& f, int head_dim, const CodedRow& row) {
    std::vector<double>    y(static_cast<size_t>(head_dim));
    const std::vector<int> level = levels_of(f, std::span(row.codes, y.size()));
    for (size_t i = 0; i < y.size(); i++) y[i] = half_to_float(row.scale) * unit(f) * level[i];
    return y;
}

std::vector<double> decode(const Format& f, int head_dim, const CodedRow& row) { return inverse(levels(f, head_dim, row)); }

Attended attend(std::span<const double> q, std::span<const double> key, std::span<const double> value, std::span<const double> bias,
                double scale, double softcap, const float* sink) {
    const size_t n = bias.size(), dk = q.size(), dv = n ? value.size() / n : 0;
    Attended     a;
    a.weight.assign(n, 0.0), a.out.assign(dv, 0.0);
    double top = sink ? *sink : -std::numeric_limits<double>::infinity();
    for (size_t j = 0; j < n; j++) {
        a.weight[j] = bias[j];
        if (std::isinf(bias[j]) && bias[j] < 0) continue;
        double s = 0;
        for (size_t i = 0; i < dk; i++) s += q[i] * key[j * dk + i];
        s *= scale;
        if (softcap != 0) s = softcap * std::tanh(s / softcap);
        a.weight[j] = s + bias[j];
        top         = std::max(top, a.weight[j]);
    }
    if (std::isinf(top)) return a.weight.assign(n, 0.0), a;
    double sum = sink ? std::exp(*sink - top) : 0.0;
    for (size_t j = 0; j < n; j++) sum += a.weight[j] = std::exp(a.weight[j] - top);
    for (size_t j = 0; j < n; j++) {
        a.weight[j] /= sum;
        if (a.weight[j] != 0)
            for (size_t x = 0; x < dv; x++) a.out[x] += a.weight[j] * value[j * dv + x];
    }
    return a;
}

} // namespace tightkv::oracle
