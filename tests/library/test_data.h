// Deterministic data for the tests: the same on every machine and standard library.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "codec/format.h"

namespace tightkv::test {

class Random { // splitmix64
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z          = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z          = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    int    below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
    double uniform() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53; } // (0, 1)
    double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform()); }

private:
    uint64_t state_;
};

inline std::vector<float> gaussian(Random& random, size_t n, double deviation = 1.0) {
    std::vector<float> x(n);
    for (float& v : x) v = static_cast<float>(deviation * random.normal());
    return x;
}

inline const std::vector<int>& head_dims() {
    static const std::vector<int> d = {32, 64, 96, 128, 160, 192, 256, 320, 512, 576, 1024};
    return d;
}

inline std::vector<const Format*> transformed_formats() {
    std::vector<const Format*> out;
    for (const Format& f : all_formats())
        if (f.transformed()) out.push_back(&f);
    return out;
}

struct NamedRow {
    std::string        name;
    std::vector<float> x;
};

// Finite rows of every unpleasant kind. Norms whose scale an fp16 cannot hold are among them.
inline std::vector<NamedRow> nasty_rows(int d) {
    Random                random(static_cast<uint64_t>(d));
    std::vector<NamedRow> rows;
    const auto            add = [&](const char* name, auto value) {
        std::vector<float> x(static_cast<size_t>(d));
        for (int i = 0; i < d; i++) x[i] = static_cast<float>(value(i));
        rows.push_back({name, std::move(x)});
    };
    const auto normal = [&](int) { return random.normal(); };
    add("gaussian", normal);
    add("outlier x100", [&](int i) { return random.normal() * (i == d / 3 ? 100 : 1); });
    add("outliers x100", [&](int i) { return random.normal() * (i % 17 == 3 ? 100 : 1); });
    add("first is a spike", [&](int i) { return i == 0 ? 1.0 : 0.0; });
    add("last is a spike", [&](int i) { return i == d - 1 ? -3.7 : 0.0; });
    add("spike on noise", [&](int i) { return random.normal() * 1e-3 + (i == d / 2 ? 40 : 0); });
    add("offset", [&](int i) { return normal(i) + 50; });
    add("alternating", [&](int i) { return i % 2 ? -1.0 : 1.0; });
    add("ramp", [&](int i) { return 0.01 * i; });
    add("flat", [&](int) { return 0.75; });
    add("zero", [&](int) { return 0.0; });
    add("minus zero", [&](int) { return -0.0; });
    add("denormal", [&](int i) { return normal(i) * 1e-40; });
    add("one denormal", [&](int i) { return i == 5 ? std::numeric_limits<float>::denorm_min() : 0.0f; });
    add("norm 1e30", [&](int i) { return normal(i) * 1e30 / std::sqrt(d); });
    add("norm 1e-30", [&](int i) { return normal(i) * 1e-30 / std::sqrt(d); });
    add("largest float", [&](int i) { return (i % 3 - 1) * std::numeric_limits<float>::max(); });
    add("heavy tail", [&](int i) { return normal(i) / (std::fabs(normal(i)) + 1e-3); });
    add("scale 1e-3", [&](int i) { return normal(i) * 1e-3; });
    add("scale 2e3", [&](int i) { return normal(i) * 2e3; });
    add("scale at the subnormal edge", [&](int i) { return normal(i) * 6.2e-5; });
    add("scale subnormal", [&](int i) { return normal(i) * 1e-6; });
    add("scale above f16", [&](int i) { return normal(i) * 2e5; });
    add("last 32 only", [&](int i) { return i >= d - 32 ? normal(i) : 0.0; });
    add("first 32 large", [&](int i) { return normal(i) * (i < 32 ? 1e3 : 1e-3); });
    add("constant in halves", [&](int i) { return i < d / 2 ? 2.0 : -0.5; });
    return rows;
}

// Rows whose transform is concentrated in few coordinates; y: [d] through T^-1 in double.
template <class Inverse> std::vector<NamedRow> concentrated_rows(int d, Inverse inverse) {
    std::vector<NamedRow> rows;
    const auto            add = [&](const std::string& name, std::vector<double> y) {
        const std::vector<double> x = inverse(y);
        rows.push_back({name, {x.begin(), x.end()}});
    };
    for (const int at : {0, d / 2, d - 1}) {
        std::vector<double> y(static_cast<size_t>(d), 0.0);
        y[at] = at == 0 ? 9.0 : -9.0;
        add("one coordinate " + std::to_string(at), y);
        y[(at + 7) % d] = 4.0;
        add("two coordinates " + std::to_string(at), y);
        Random random(static_cast<uint64_t>(at));
        for (double& v : y) v += 0.05 * random.normal();
        add("coordinates on noise " + std::to_string(at), y);
    }
    return rows;
}

} // namespace tightkv::test
