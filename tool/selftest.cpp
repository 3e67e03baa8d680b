#include "selftest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "cpu/kernel_table.h"

namespace tightkv::tool {

namespace {

constexpr int kRows = 64;

// Upper bound of the mean relative squared error of Gaussian rows: 1.1 times that of the optimal (Lloyd-Max) scalar quantiser at this many
// bits (Max 1960: .1175, .03454, .009497), which the formats come close to; turbo8 is uniform and far below its bound.
double error_bound(const Format& f) {
    switch (f.bits) {
    case 2: return 0.1175 * 1.1;
    case 3: return 0.03454 * 1.1;
    case 4: return 0.009497 * 1.1;
    default: return 2e-4;
    }
}

std::string check(const KernelTable& kernel, const Format& f, int d, double& relative_error) {
    const Transform&           t = transform_for(d);
    std::mt19937               random(1); // NOLINT: the same rows every time
    std::normal_distribution<> normal;
    std::vector<float>         x(static_cast<size_t>(d)), y(x.size()), reference(x.size());
    std::vector<uint8_t>       bytes(f.row_bytes(d));
    double                     error = 0, power = 0;
    for (int r = 0; r < kRows; r++) {
        for (float& v : x) v = static_cast<float>(normal(random) * std::exp2(r % 9 - 4));
        CodedRow row{}, scalar{}, unpacked{};
        if (kernel.encode(f, t, x.data(), row) != RowStatus::kOk) return "refuses a finite row";
        encode_row(f, d, x.data(), scalar);
        const auto same = [&](const CodedRow& o) {
            return o.scale == row.scale && std::memcmp(o.codes, row.codes, static_cast<size_t>(d)) == 0;
        };
        if (!same(scalar)) return "encodes otherwise than the scalar reference";
        pack_row(f, d, row, bytes.data());
        unpack_row(f, d, bytes.data(), unpacked);
        if (!same(unpacked)) return "packing loses codes";
        kernel.decode(f, t, row, y.data());
        decode_row(f, d, row, reference.data());
        if (std::memcmp(y.data(), reference.data(), y.size() * sizeof(float)) != 0) return "decodes otherwise than the scalar reference";
        double e = 0, p = 0;
        for (size_t i = 0; i < x.size(); i++) {
            e += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
            p += static_cast<double>(x[i]) * x[i];
        }
        error += e / p;
        power += 1;
    }
    relative_error = error / power;
    return relative_error < error_bound(f) ? "ok" : "loses more than the format allows";
}

} // namespace

std::vector<Json> selftest(std::span<const int> head_dims) {
    std::vector<Json> rows;
    for (const KernelTable* kernel : available_kernels())
        for (const Format& f : all_formats()) {
            if (!f.transformed()) continue;
            for (const int d : head_dims) {
                double            error  = 0;
                const std::string result = check(*kernel, f, d, error);
                rows.push_back({{"isa", kernel->name},
                                {"format", f.name},
                                {"head_dim", d},
                                {"rows", kRows},
                                {"relative_error", error},
                                {"result", result}});
            }
        }
    return rows;
}

bool all_ok(const std::vector<Json>& rows) {
    return std::all_of(rows.begin(), rows.end(), [](const Json& r) { return r["result"] == "ok"; });
}

} // namespace tightkv::tool
