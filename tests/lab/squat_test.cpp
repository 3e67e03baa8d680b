// SQuat keeps the error out of the subspace of the queries, and pays for it elsewhere.
#include "lab/methods/squat.h"

#include "lab_case.h"

using namespace tightkv::lab;
using namespace tightkv::lab::test;

namespace {

constexpr size_t kDim = 64, kN = 32 * 20;

// Queries that are combinations of `rank` directions, each over all channels.
Rows queries_in_subspace(size_t rank) {
    const Rows directions = gaussian_rows(rank, kDim, 1), weights = gaussian_rows(2000, rank, 2);
    Rows       q(2000 * kDim, 0.0f);
    for (size_t i = 0; i < 2000; i++)
        for (size_t r = 0; r < rank; r++)
            for (size_t c = 0; c < kDim; c++) q[i * kDim + c] += weights[i * rank + r] * directions[r * kDim + c];
    return q;
}
Rows some(const Rows& queries) { return Rows(queries.begin(), queries.begin() + 50 * kDim); }

} // namespace

// Every block but the last is made up for by those that follow, so what is left in the subspace is the error of the last quarter of the
// channels: as much of KIVI's as the queries have of their length there. 640 keys: the ratio is known to 8 %.
TEST(Squat, ErrorLeavesTheQuerySubspace) {
    const Rows keys = gaussian_rows(kN, kDim, 3);
    for (const auto& [name, rank] : {std::pair<const char*, size_t>{"squat", 5}, {"squatv", 1}})
        for (const char* bits : {"2", "3", "4"}) {
            const Rows   queries = queries_in_subspace(rank);
            const Rows   kivi    = at_once(*fitted(std::string("kivi") + bits, Operand::key, kDim, {}, {}), keys, kDim);
            const Rows   squat   = at_once(*fitted(std::string(name) + bits, Operand::key, kDim, keys, queries), keys, kDim);
            const double ratio   = score_error(some(queries), keys, squat, kDim) / score_error(some(queries), keys, kivi, kDim);
            double       last = 0, all = 0;
            for (size_t i = 0; i < 50 * kDim; i++) {
                const double square = static_cast<double>(queries[i]) * static_cast<double>(queries[i]);
                all += square, last += i % kDim >= kDim / 4 * 3 ? square : 0;
            }
            EXPECT_NEAR(ratio / (last / all), 1, 0.3) << name << bits;
            EXPECT_GT(squared_error(squat, keys), squared_error(kivi, keys)) << name << bits;
        }
}

// With lambda = 0 the metric is the identity and nothing moves.
TEST(Squat, IsKiviWithoutQueries) {
    const Rows          keys = gaussian_rows(kN, kDim, 4);
    std::vector<double> identity(kDim * kDim, 0.0);
    for (size_t i = 0; i < kDim; i++) identity[i * kDim + i] = 1;
    EXPECT_EQ(at_once(*make_squat_keys(2, kDim, identity), keys, kDim), at_once(*fitted("kivi2", Operand::key, kDim, {}, {}), keys, kDim));
    EXPECT_EQ(at_once(*fitted("squat2", Operand::value, kDim, {}, {}), keys, kDim),
              at_once(*fitted("kivi2", Operand::value, kDim, {}, {}), keys, kDim));
}

// Whatever lambda is, the error is smaller in the metric that it is to be small in.
TEST(Squat, ErrorIsSmallerInItsMetric) {
    const Rows u = gaussian_rows(1, kDim, 5), keys = gaussian_rows(kN, kDim, 6);
    const Rows kivi = at_once(*fitted("kivi3", Operand::key, kDim, {}, {}), keys, kDim);
    for (const double c : {0.1, 1.0, 100.0}) {
        std::vector<double> metric(kDim * kDim); // 1 + c u u^T
        for (size_t i = 0; i < kDim; i++)
            for (size_t j = 0; j < kDim; j++) metric[i * kDim + j] = double(i == j) + c * double(u[i]) * double(u[j]);
        const Rows squat = at_once(*make_squat_keys(3, kDim, metric), keys, kDim);
        const auto size  = [&](const Rows& seen) { return squared_error(seen, keys) + c * score_error(u, keys, seen, kDim); };
        EXPECT_LT(size(squat), size(kivi)) << c;
    }
}
