// The list of methods: a stem and the bits of a code.
#include <cstdlib>
#include <functional>

#include "lab/methods/methods.h"

namespace tightkv::lab {

namespace {

struct Entry {
    const char*                                 stem;
    std::function<std::unique_ptr<Method>(int)> make;
    const char*                                 suffix = ""; // after the bits
};

const std::vector<Entry>& entries() {
    static const std::vector<Entry> list = {
        {"turbo", make_turbo},
        {"cat", [](int b) { return make_cat(b, false); }},
        {"catv", [](int b) { return make_cat(b, true); }},
        {"squat", [](int b) { return make_squat(b, false); }},
        {"squatv", [](int b) { return make_squat(b, true); }},
        {"innerq", [](int b) { return make_innerq(b, false); }},
        {"innerqv", [](int b) { return make_innerq(b, true); }},
        {"qjl", make_qjl},
        {"rotor", [](int b) { return make_rotor(b, Blocks::rotor); }},
        {"quaternion", [](int b) { return make_rotor(b, Blocks::quaternion); }},
        {"givens", [](int b) { return make_rotor(b, Blocks::givens); }},
        {"kivi", make_kivi},
        {"outlier", make_outlier, ".5"},
    };
    return list;
}

constexpr int kBits[] = {2, 3, 4};

// Name and maker of every method; outlier4.5 would need a codebook of 5 bits.
template <class F> void for_each_method(const F& f) {
    for (const Entry& e : entries())
        for (const int bits : kBits)
            if (!(*e.suffix && bits == 4)) f(e.stem + std::to_string(bits) + e.suffix, [&, bits] { return e.make(bits); });
}

} // namespace

std::vector<std::string> method_names() {
    std::vector<std::string> names;
    for_each_method([&](const std::string& name, const auto&) { names.push_back(name); });
    return names;
}

std::unique_ptr<Method> make_method(std::string_view name) {
    std::unique_ptr<Method> made;
    for_each_method([&](const std::string& n, const auto& make) {
        if (n == name) made = make();
    });
    return made;
}

double bits_per_value(const Bits& b, int head_dim, int rows_of_sequence) {
    return (b.row + b.sequence / rows_of_sequence + b.model / kModelRows) / head_dim;
}

std::string Method::refusal(int) const { return {}; }

} // namespace tightkv::lab
