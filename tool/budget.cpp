// The choice alone; measuring is in budget_measure.cpp.
#include "budget.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "codec/row.h"

namespace tightkv::tool {

namespace {

// Deterministic, roughly Gaussian: the sum of twelve uniform numbers.
float noise(uint64_t& state) {
    double sum = -6;
    for (int i = 0; i < 12; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        sum += static_cast<double>(state >> 11) * 0x1p-53;
    }
    return static_cast<float>(sum);
}

double distortion(const Format& f, int d) {
    uint64_t           state = 1;
    double             error = 0, size = 0;
    CodedRow           coded;
    std::vector<float> x(static_cast<size_t>(d)), y(x.size());
    for (int row = 0; row < 64; row++) {
        for (float& v : x) v = noise(state);
        (void)encode_row(f, d, x.data(), coded);
        decode_row(f, d, coded, y.data());
        for (size_t i = 0; i < x.size(); i++) {
            const double e = static_cast<double>(y[i] - x[i]), v = static_cast<double>(x[i]);
            error += e * e, size += v * v;
        }
    }
    return error / size;
}

} // namespace

std::vector<BudgetFormat> budget_formats(int head_dim) {
    std::vector<BudgetFormat> out;
    for (const Format& f : all_formats())
        if (f.transformed()) out.push_back({f.id, distortion(f, head_dim)});
    // Of formats with as many bits the best.
    std::sort(out.begin(), out.end(), [](const BudgetFormat& a, const BudgetFormat& b) {
        const int bits_a = format(a.id).bits, bits_b = format(b.id).bits;
        return bits_a != bits_b ? bits_a < bits_b : a.distortion < b.distortion;
    });
    out.erase(std::unique(out.begin(), out.end(),
                          [](const BudgetFormat& a, const BudgetFormat& b) { return format(a.id).bits == format(b.id).bits; }),
              out.end());
    return out;
}

double average_bits(std::span<const BudgetUnit> units, std::span<const FormatId> formats) {
    double bits = 0, values = 0;
    for (size_t i = 0; i < units.size(); i++)
        bits += units[i].values * format(formats[i]).bits_per_value(units[i].head_dim), values += units[i].values;
    return bits / values;
}

std::vector<FormatId> choose_formats(std::span<const BudgetUnit> units, std::span<const BudgetFormat> formats, double bits) {
    std::vector<size_t> at(units.size(), 0);
    double              values = 0, spent = 0;
    const auto price = [&](size_t i, size_t f) { return units[i].values * format(formats[f].id).bits_per_value(units[i].head_dim); };
    const auto kld   = [&](size_t i, size_t f) { return units[i].kld * formats[f].distortion / formats[0].distortion; };
    for (size_t i = 0; i < units.size(); i++) values += units[i].values, spent += price(i, 0);
    const double most = bits * values * (1 + 1e-12);
    if (spent > most) return {};
    for (;;) {
        size_t unit = 0, to = 0;
        double best = 0;
        for (size_t i = 0; i < units.size(); i++)
            for (size_t f = at[i] + 1; f < formats.size(); f++) {
                const double more = price(i, f) - price(i, at[i]);
                const double gain = (kld(i, at[i]) - kld(i, f)) / more;
                if (spent + more <= most && gain > best) best = gain, unit = i, to = f;
            }
        if (best <= 0) break;
        spent += price(unit, to) - price(unit, at[unit]);
        at[unit] = to;
    }
    std::vector<FormatId> chosen;
    for (const size_t f : at) chosen.push_back(formats[f].id);
    return chosen;
}

std::string budget_report(const Profile& p, const BudgetResult& r) {
    std::map<std::string, int> k, v;
    for (const LayerProfile& l : p.layers) k[format(*l.k_format).name]++, v[format(*l.v_format).name]++;
    const auto list = [](const std::map<std::string, int>& counts) {
        std::string text;
        for (const auto& [name, n] : counts) text += fmt::format("{}{} of {}", text.empty() ? "" : ", ", n, name);
        return text;
    };
    const Summary &a = r.uniform_kld, &b = r.chosen_kld;
    return fmt::format("formats of K: {}; of V: {}\nheld-out text, first four rows exact: {} everywhere ({:.3f} bits) KLD {:.5f} ± {:.5f}, "
                       "chosen ({:.3f} bits) KLD {:.5f} ± {:.5f}: {:+.1f} %\n",
                       list(k), list(v), format(r.uniform).name, r.uniform_bits, a.kld, a.kld_se, r.chosen_bits, b.kld, b.kld_se,
                       100 * (b.kld / a.kld - 1));
}

} // namespace tightkv::tool
