// Transforms with a mean or a dense matrix for the tests: T = D Q, Q a product of random Householder reflections, D a random diagonal, so
// that the inverse Q^T D^-1 is known in double and the condition number is that of D.
#pragma once
#include <memory>

#include "codec/transform.h"
#include "test_data.h"

namespace tightkv::test {

struct DenseTransform {
    int                 d = 0;
    std::vector<double> matrix, inverse; // [d][d], row-major
    std::vector<float>  matrix32, inverse32;
};

// stretch: D lies between 1/stretch and stretch.
inline DenseTransform random_dense(Random& random, int d, double stretch) {
    const size_t        n = static_cast<size_t>(d);
    DenseTransform      t{d, std::vector<double>(n * n, 0.0), std::vector<double>(n * n), {}, {}};
    std::vector<double> v(n), scale(n);
    for (size_t i = 0; i < n; i++) t.matrix[i * n + i] = 1;
    for (int reflection = 0; reflection < 3; reflection++) { // Q (1 - 2 v v^T / |v|²)
        double square = 0;
        for (double& x : v) x = random.normal(), square += x * x;
        for (size_t i = 0; i < n; i++) {
            double dot = 0;
            for (size_t j = 0; j < n; j++) dot += t.matrix[i * n + j] * v[j];
            for (size_t j = 0; j < n; j++) t.matrix[i * n + j] -= 2 * dot * v[j] / square;
        }
    }
    for (double& s : scale) s = std::pow(stretch, 2 * random.uniform() - 1);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) t.inverse[j * n + i] = t.matrix[i * n + j] / scale[i], t.matrix[i * n + j] *= scale[i];
    t.matrix32.assign(t.matrix.begin(), t.matrix.end());
    t.inverse32.assign(t.inverse.begin(), t.inverse.end());
    return t;
}

inline std::shared_ptr<const Transform> make_transform(const DenseTransform& t, std::vector<float> mean = {}) {
    return std::make_shared<const Transform>(t.d, std::move(mean), t.matrix32, t.inverse32);
}

struct NamedTransform {
    std::string                      name;
    std::shared_ptr<const Transform> t;
};

// Plain, with a mean, dense, and both.
inline std::vector<NamedTransform> all_transforms(Random& random, int d, double mean_deviation) {
    const size_t         n     = static_cast<size_t>(d);
    const DenseTransform dense = random_dense(random, d, 2);
    return {{"plain", std::make_shared<const Transform>(d)},
            {"mean", std::make_shared<const Transform>(d, gaussian(random, n, mean_deviation))},
            {"dense", make_transform(dense)},
            {"dense and mean", make_transform(dense, gaussian(random, n, mean_deviation))}};
}

} // namespace tightkv::test
