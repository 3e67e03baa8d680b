// The transform of the write path: y = T (x - mean). T is the randomised Hadamard transform, y = S2 H S1 x / sqrt(n) block by block, or a
// dense matrix of a profile (cache/profile.h). The mean is zero where there is no profile and nothing was calibrated.
// A head_dim that is no power of two is split into power-of-two blocks, largest first (96 = 64+32, 576 = 512+64); no padding.
// H is the Sylvester-Hadamard matrix; butterflies run from stride 1 upwards, and that order is part of the contract: with it
// every ISA rounds alike. Signs are the top bit of splitmix64(kSignSeed + 2*index + which), a counter, so they need no table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tightkv {

inline constexpr uint64_t kSignSeed = 0x7469676874'6b7631ull; // "tightkv1": changes with kFormatVersion

// Scalar reference of the butterflies, in place, without the factor 1/sqrt(n); n a power of two.
void fwht(float* x, int n);

class Transform {
public:
    // head_dim must be valid (format.h); everything is computed here, the methods allocate nothing and are thread-safe.
    // mean: [d], or empty for none.
    explicit Transform(int head_dim, std::vector<float> mean = {});
    // Dense T: matrix and its inverse, [d][d], row-major.
    Transform(int head_dim, std::vector<float> mean, std::span<const float> matrix, std::span<const float> inverse);

    // The same T with another mean, [d].
    Transform with_mean(std::vector<float> mean) const;

    int                     head_dim() const { return head_dim_; }
    const std::vector<int>& blocks() const { return blocks_; }
    const float*            pre() const { return pre_.data(); }   // [d] S1: +-1
    const float*            post() const { return post_.data(); } // [d] S2 / sqrt(n of the block)

    const float* mean() const { return mean_.empty() ? nullptr : mean_.data(); } // [d]
    // Dense T only, stored so that output i of input j is at [j * d + i].
    bool         dense() const { return !columns_.empty(); }
    const float* columns() const { return columns_.data(); }                 // T
    const float* inverse_columns() const { return inverse_columns_.data(); } // T^-1
    const float* query_columns() const { return query_columns_.data(); }     // T^-T: <T^-T q, T k> = <q, k>
    // Neither mean nor matrix: what an orthogonal transform promises about norms holds for the rows themselves.
    bool plain() const { return mean_.empty() && columns_.empty(); }

    // Scalar reference, in place: [d]. y = T (x - mean) and x = T^-1 y + mean.
    void forward(float* x) const;
    void inverse(float* y) const;
    // Without the mean: queries of keys, T^-T q, and weighted sums of values, T^-1 o.
    void query(float* q) const;
    void output(float* o) const;

private:
    int                head_dim_;
    std::vector<int>   blocks_;
    std::vector<float> pre_, post_, mean_, columns_, inverse_columns_, query_columns_;
};

// The transform of a head_dim, made once and kept for the life of the process; thread-safe.
const Transform& transform_for(int head_dim);

} // namespace tightkv
