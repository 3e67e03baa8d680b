// Trains the tables of the trellis formats (src/codec/trellis.h) on Gaussian data and prints them with their distortion.
//
//   trellis_train BITS [tied]     BITS 2, 3 or 4; tied: T[~x] = -T[x] of the 16 entries, which halves a look-up on GPUs
//   trellis_train check           trains shortly and holds the result against the tables of record; exit status 1 if it falls behind
//
// Start: the union codebook. Its 16 (4 bits: 16 + 8) levels are those of a Lloyd-Max quantiser, in an order that decides everything: a hill
// climb over swaps finds it. Then Lloyd's iteration: best paths for the data, then every entry the mean of what it coded; tables that add
// take turns. At the end entries are rounded to int8.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "codec/trellis.h"

namespace {

constexpr int kLanes = 16, kLength = 256; // sequences side by side; so long that free ends do not matter

struct Tables {
    int                   bits;
    std::array<float, 16> first{};
    std::array<float, 8>  second{}; // 4 bits
};

int   states_after(int bits, int n, int state) { return bits == 2 ? n | (state & 1) << 2 : n & 7; }
int   index_of(int bits, int n, int state) { return bits == 2 ? (4 * n) ^ state : bits == 3 ? (2 * n) ^ state : n; }
float level(const Tables& t, int n, int state) {
    const float own = t.first[static_cast<size_t>(index_of(t.bits, n, state))];
    return t.bits == 4 ? own + t.second[static_cast<size_t>(state)] : own;
}

using Block = std::array<std::array<float, kLanes>, kLength>;
std::vector<Block> gaussian_blocks(int n, uint64_t seed) {
    std::mt19937_64                 random(seed);
    std::normal_distribution<float> normal;
    std::vector<Block>              blocks(static_cast<size_t>(n));
    for (Block& b : blocks)
        for (auto& row : b)
            for (float& v : row) v = normal(random);
    return blocks;
}

struct Branch {
    int state, n;
};

// Σ and count of what every branch [16 codes][8 states] coded.
struct Usage {
    double sum[16][8] = {}, count[16][8] = {};
};

// Mean squared error of the best paths with free ends.
double quantise(const Tables& t, const std::vector<Block>& data, Usage* usage) {
    const int           codes = 1 << t.bits;
    std::vector<Branch> into[8];
    for (int state = 0; state < 8; state++)
        for (int n = 0; n < codes; n++) into[states_after(t.bits, n, state)].push_back({state, n});
    static uint8_t from[kLength][8][kLanes];
    double         total = 0;
    for (const Block& x : data) {
        float sum[8][kLanes] = {}, next[8][kLanes];
        for (int i = 0; i < kLength; i++) {
            for (int after = 0; after < 8; after++) {
                float best[kLanes];
                int   which[kLanes] = {};
                std::fill_n(best, kLanes, std::numeric_limits<float>::infinity());
                for (size_t b = 0; b < into[after].size(); b++) {
                    const float  y   = level(t, into[after][b].n, into[after][b].state);
                    const float* old = sum[into[after][b].state];
                    for (int l = 0; l < kLanes; l++) {
                        const float e = x[static_cast<size_t>(i)][static_cast<size_t>(l)] - y, s = old[l] + e * e;
                        which[l] = s < best[l] ? static_cast<int>(b) : which[l];
                        best[l]  = s < best[l] ? s : best[l];
                    }
                }
                for (int l = 0; l < kLanes; l++) next[after][l] = best[l], from[i][after][l] = static_cast<uint8_t>(which[l]);
            }
            std::memcpy(sum, next, sizeof sum);
        }
        for (int l = 0; l < kLanes; l++) {
            int end = 0;
            for (int s = 1; s < 8; s++)
                if (sum[s][l] < sum[end][l]) end = s;
            total += static_cast<double>(sum[end][l]);
            for (int i = kLength - 1, state = end; i >= 0 && usage; i--) {
                const Branch b = into[state][from[i][state][l]];
                usage->sum[b.n][b.state] += static_cast<double>(x[static_cast<size_t>(i)][static_cast<size_t>(l)]);
                usage->count[b.n][b.state] += 1;
                state = b.state;
            }
        }
    }
    return total / (static_cast<double>(data.size()) * kLength * kLanes);
}

double decibel(double mse) { return -10 * std::log10(mse); }

template <size_t N> void tie(std::array<float, N>& t) {
    for (size_t i = 0; i < N / 2; i++) {
        const float v = (t[i] - t[N - 1 - i]) / 2;
        t[i] = v, t[N - 1 - i] = -v;
    }
}

void refine(Tables& t, const Usage& u, bool tied) {
    const int codes = 1 << t.bits;
    for (int round = 0; round < (t.bits == 4 ? 20 : 1); round++) {
        std::array<double, 16> sum{}, count{};
        for (int n = 0; n < codes; n++)
            for (int s = 0; s < 8; s++) {
                const auto i = static_cast<size_t>(index_of(t.bits, n, s));
                sum[i] += u.sum[n][s] - u.count[n][s] * static_cast<double>(t.second[static_cast<size_t>(s)]), count[i] += u.count[n][s];
            }
        for (size_t i = 0; i < 16; i++)
            if (count[i] > 8) t.first[i] = static_cast<float>(sum[i] / count[i]);
        if (tied) tie(t.first);
        for (size_t s = 0; s < 8 && t.bits == 4; s++) {
            double a = 0, c = 0;
            for (size_t n = 0; n < 16; n++) a += u.sum[n][s] - u.count[n][s] * static_cast<double>(t.first[n]), c += u.count[n][s];
            if (c > 8) t.second[s] = static_cast<float>(a / c);
        }
    }
}

double train(Tables& t, const std::vector<Block>& data, int rounds, bool tied) {
    double mse = 0;
    for (int r = 0; r < rounds; r++) {
        Usage u;
        mse = quantise(t, data, &u);
        refine(t, u, tied);
    }
    return mse;
}

// Quantiles spread wider than the density: what Lloyd-Max levels are, near enough for a start.
std::vector<float> spread_levels(int n, double width) {
    std::vector<float> out;
    for (int i = 0; i < n; i++) {
        double lo = -9, hi = 9;
        for (int k = 0; k < 60; k++) (0.5 * std::erfc(-(lo + hi) / 2 / std::sqrt(2.0)) < (i + 0.5) / n ? lo : hi) = (lo + hi) / 2;
        out.push_back(static_cast<float>(lo * width));
    }
    return out;
}

// The union start in the best order that `steps` swaps find.
Tables start(int bits, bool tied, int steps, uint64_t seed, const std::vector<Block>& data) {
    std::mt19937_64          random(seed);
    const std::vector<float> union16 = spread_levels(16, bits == 4 ? 1.3 : 1.45), union8 = spread_levels(8, 0.5);
    Tables                   best{bits, {}, {}};
    for (size_t i = 0; i < 16; i++) best.first[i] = union16[i];
    for (size_t i = 0; i < 8; i++) best.second[i] = bits == 4 ? union8[i] : 0;
    const auto shuffle = [&](auto& table, int swaps, bool tied) {
        const size_t n = table.size();
        for (int k = 0; k < swaps; k++) {
            const size_t a = random() % n, b = random() % n;
            if (tied) { // keep T[~x] = -T[x]: swap both pairs, or turn one pair around
                if (a == b || a + b == n - 1) std::swap(table[a], table[n - 1 - a]);
                else std::swap(table[a], table[b]), std::swap(table[n - 1 - a], table[n - 1 - b]);
            } else {
                std::swap(table[a], table[b]);
            }
        }
    };
    bits == 4 ? shuffle(best.second, 100, false) : shuffle(best.first, 200, tied);
    double least = quantise(best, data, nullptr);
    for (int k = 0; k < steps; k++) {
        Tables t = best;
        if (bits == 4)
            shuffle(t.second, 1, false); // own codes stay in ascending order: n and n + 8, the two that lead to one state, lie far apart
        else shuffle(t.first, 1 + static_cast<int>(random() % 2), tied);
        const double mse = quantise(t, data, nullptr);
        if (mse < least) least = mse, best = t;
    }
    return best;
}

// To int8: unit 127 = the outermost level. Returns the value of 127 in sigma.
float round_tables(Tables& t) {
    float top = 0;
    for (int state = 0; state < 8; state++)
        for (int n = 0; n < 1 << t.bits; n++) top = std::max(top, std::fabs(level(t, n, state)));
    for (float& v : t.first) v = std::round(v * 127 / top) * top / 127;
    for (float& v : t.second) v = std::round(v * 127 / top) * top / 127;
    return top;
}

Tables of_record(int bits) {
    const tightkv::Trellis& r = tightkv::trellis(bits);
    Tables                  t{bits, {}, {}};
    for (size_t i = 0; i < 16; i++) t.first[i] = static_cast<float>(r.table[i]) * r.unit;
    for (size_t i = 0; i < 8; i++) t.second[i] = static_cast<float>(r.second[i]) * r.unit;
    return t;
}

bool is_tied(const Tables& t) {
    for (size_t i = 0; i < 16; i++)
        if (t.first[i] != -t.first[15 - i]) return false;
    return true;
}

// Several starts, shortly trained; the best is trained on.
Tables best_of(int bits, bool tied, int starts, int steps, const std::vector<Block>& small, const std::vector<Block>& large, int rounds) {
    Tables best{};
    double least = std::numeric_limits<double>::infinity();
    for (int k = 0; k < starts; k++) {
        Tables       t   = start(bits, tied, steps, static_cast<uint64_t>(k) + 1, small);
        const double mse = (train(t, small, 12, tied), quantise(t, large, nullptr));
        if (mse < least) least = mse, best = t;
    }
    train(best, large, rounds, tied);
    return best;
}

int check() {
    // Trained from the tables' order blurred by noise, on little data: must come back to within 0.03 dB, the scatter of tables that were
    // trained on 2^16 values (entries off by their standard error cost about entries / values of the distortion, and local optima more).
    int        failed = 0;
    const auto small = gaussian_blocks(16, 11), test = gaussian_blocks(64, 12);
    for (const int bits : {2, 3, 4}) {
        Tables                          t    = of_record(bits);
        const double                    want = decibel(quantise(t, test, nullptr));
        const bool                      tied = is_tied(t);
        std::mt19937_64                 random(5);
        std::normal_distribution<float> normal;
        for (float& v : t.first) v += (bits == 4 ? 0.08f : bits == 3 ? 0.14f : 0.25f) * normal(random);
        for (float& v : t.second) v += bits == 4 ? 0.08f * normal(random) : 0.0f;
        if (tied) tie(t.first);
        const double blurred = decibel(quantise(t, test, nullptr));
        train(t, small, 25, tied);
        round_tables(t);
        const double got = decibel(quantise(t, test, nullptr));
        std::printf("%d bit%s: of record %.3f dB, blurred %.3f dB, trained again %.3f dB\n", bits, tied ? ", tied" : "", want, blurred,
                    got);
        failed |= got < want - 0.03 || got > want + 0.1 || blurred > want - 0.1;
    }
    return failed;
}

} // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "check") return check();
    const bool tied = argc > 2 && std::string(argv[2]) == "tied";
    if ((what != "2" && what != "3" && what != "4") || (argc > 2 && !tied)) {
        std::fprintf(stderr, "usage: trellis_train 2|3|4 [tied] | check\n");
        return 2;
    }
    const int   bits = what[0] - '0', starts = argc > 3 ? std::atoi(argv[3]) : 24, steps = argc > 4 ? std::atoi(argv[4]) : 400;
    const auto  small = gaussian_blocks(2, 1), large = gaussian_blocks(32, 2), test = gaussian_blocks(256, 3);
    Tables      t   = best_of(bits, tied, starts, steps, small, large, 60);
    const float top = round_tables(t);
    std::printf("%d bit%s: %.3f dB (tables of record: %.3f dB) on 1M values, ends free\nscale %.5f, table", bits, tied ? ", tied" : "",
                decibel(quantise(t, test, nullptr)), decibel(quantise(of_record(bits), test, nullptr)), static_cast<double>(top));
    for (const float v : t.first) std::printf(" %ld", std::lround(v * 127 / top));
    if (bits == 4) std::printf(", second");
    for (const float v : t.second)
        if (bits == 4) std::printf(" %ld", std::lround(v * 127 / top));
    std::printf("\n");
    return 0;
}
