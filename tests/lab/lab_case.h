// Data for the tests of the lab's methods, and the way the harness feeds them.
#pragma once
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "lab/methods/method.h"

namespace tightkv::lab::test {

using Rows = std::vector<float>; // [n][d]

// Channel c of every row is normal with deviation spread(c).
inline Rows gaussian_rows(
    size_t n, size_t d, unsigned seed, const std::function<double(size_t)>& spread = [](size_t) { return 1.0; }) {
    std::mt19937               random(seed);
    std::normal_distribution<> normal;
    Rows                       rows(n * d);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = static_cast<float>(normal(random) * spread(i % d));
    return rows;
}

// One layer of one head.
inline LayerSamples layer_of(Operand operand, int head_dim, const Rows& rows, const Rows& queries) {
    return {operand, head_dim, {{rows, operand == Operand::key ? std::span<const float>(queries) : std::span<const float>()}}};
}

inline std::unique_ptr<HeadMethod> fitted(std::string_view name, Operand operand, int head_dim, const Rows& rows, const Rows& queries) {
    const auto method = make_method(name);
    EXPECT_TRUE(method) << name;
    return method->fit(layer_of(operand, head_dim, rows, queries), 0);
}

// What attention sees in the end when rows come `step` at a time.
inline Rows feed(const HeadMethod& m, const Rows& rows, size_t d, size_t step) {
    Rows         seen(rows.size());
    const size_t n = rows.size() / d;
    for (size_t done = 0; done < n;) {
        const size_t now = std::min(n, done + step), begin = m.first_changed(done);
        EXPECT_LE(begin, done);
        m.roundtrip(begin, std::span(rows).subspan(begin * d, (now - begin) * d), std::span(seen).subspan(begin * d, (now - begin) * d));
        done = now;
    }
    return seen;
}
inline Rows at_once(const HeadMethod& m, const Rows& rows, size_t d) { return feed(m, rows, d, rows.size() / d); }

inline double squared_error(const Rows& a, const Rows& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double e = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        sum += e * e;
    }
    return sum;
}

// Sum over queries and rows of the squared error of the score.
inline double score_error(const Rows& queries, const Rows& rows, const Rows& seen, size_t d) {
    double sum = 0;
    for (size_t q = 0; q < queries.size(); q += d)
        for (size_t k = 0; k < rows.size(); k += d) {
            double e = 0;
            for (size_t i = 0; i < d; i++)
                e += static_cast<double>(queries[q + i]) * (static_cast<double>(seen[k + i]) - static_cast<double>(rows[k + i]));
            sum += e * e;
        }
    return sum;
}

} // namespace tightkv::lab::test
