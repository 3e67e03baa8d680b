// The orthogonal transform T of the write path: y = S2 H S1 x / sqrt(n), block by block.
// A head_dim that is no power of two is split into power-of-two blocks, largest first (96 = 64+32, 576 = 512+64); no padding.
// H is the Sylvester-Hadamard matrix; butterflies run from stride 1 upwards, and that order is part of the contract: with it
// every ISA rounds alike. Signs are the top bit of splitmix64(kSignSeed + 2*index + which), a counter, so they need no table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tightkv {

inline constexpr uint64_t kSignSeed = 0x7469676874'6b7631ull; // "tightkv1": changes with kFormatVersion

// Scalar reference of the butterflies, in place, without the factor 1/sqrt(n); n a power of two.
void fwht(float* x, int n);

class Transform {
public:
    // head_dim must be valid (format.h); everything is computed here, the methods allocate nothing and are thread-safe.
    explicit Transform(int head_dim);

    int                     head_dim() const { return head_dim_; }
    const std::vector<int>& blocks() const { return blocks_; }
    const float*            pre() const { return pre_.data(); }   // [d] S1: +-1
    const float*            post() const { return post_.data(); } // [d] S2 / sqrt(n of the block)

    // Scalar reference. y = T x and x = T^-1 y, in place: [d].
    void forward(float* x) const;
    void inverse(float* y) const;

private:
    int                head_dim_;
    std::vector<int>   blocks_;
    std::vector<float> pre_, post_;
};

// The transform of a head_dim, made once and kept for the life of the process; thread-safe.
const Transform& transform_for(int head_dim);

} // namespace tightkv
