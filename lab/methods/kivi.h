// KIVI: keys per channel, values per token.
// Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024, arXiv 2402.02750, sections 3 and 4.
//   keys    groups of 32 tokens of one channel, asymmetric codes; the tokens of the unfinished group stay in f16
//   values  groups of 32 channels of one token, asymmetric codes; the 32 newest tokens stay in f16
// Ours: the residual is 32 tokens long (the paper's: 128), which suits contexts of 512; it is counted. In the batched path all rows of a
// batch are there before its first query asks, so early queries meet codes where the paper's prefill would meet f16.
#pragma once
#include "lab/methods/affine.h"
#include "lab/methods/method.h"

namespace tightkv::lab {

inline constexpr size_t kTokensOfGroup = kGroup; // keys
inline constexpr size_t kNewest        = 32;     // values in f16

// Of one head of keys; the base of SQuat, which changes how the codes of a full group are chosen.
class KiviKeys : public HeadMethod {
public:
    KiviKeys(int bits, int head_dim) : bits_(bits), head_dim_(static_cast<size_t>(head_dim)) {}
    size_t first_changed(size_t first_new) const override { return first_new / kTokensOfGroup * kTokensOfGroup; }
    void   roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const override;

protected:
    // In place: [kTokensOfGroup][head_dim].
    virtual void code_group(float* group) const;
    // Channels [from, to) of a group.
    void code_channels(float* group, size_t from, size_t to) const;

    int    bits_;
    size_t head_dim_;
};

Bits                        kivi_bits(Operand operand, int bits, int head_dim);
std::unique_ptr<HeadMethod> make_kivi_values(int bits, int head_dim);

} // namespace tightkv::lab
