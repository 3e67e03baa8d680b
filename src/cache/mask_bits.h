// Masks of 0 and -inf as bits (MaskType::kBits): a sixteenth of an f16 mask's bytes, made along its rows instead of looked at across them.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "cpu/kernel_table.h"

namespace tightkv {

// The word of n <= 64 tokens of one row of a mask. Value: its type as an integer; hidden: the bits of -inf.
template <class Value> bool mask_word_of(const char* row, int n, Value hidden, uint64_t& word) {
    const auto value = [row](int t) {
        Value v;
        std::memcpy(&v, row + static_cast<size_t>(t) * sizeof v, sizeof v);
        return v;
    };
    if (n == kTileTokens) { // nearly always the same value 64 times
        Value set = 0, other = 0;
        for (int t = 0; t < kTileTokens; t++) set |= value(t), other |= value(t) ^ hidden;
        if (set == 0 || other == 0) return word = set == 0 ? ~uint64_t{0} : 0, true;
    }
    word = 0;
    for (int t = 0; t < n; t++) {
        if (value(t) == 0) word |= uint64_t{1} << t;
        else if (value(t) != hidden) return false;
    }
    return true;
}

// row: the value of the first token, of a mask of kNone, kF16 or kF32. False: a value is neither 0 nor -inf, so this is no mask of bits.
inline bool mask_word_of(MaskType type, const void* row, int n, uint64_t& word) {
    const char* const bytes = static_cast<const char*>(row);
    if (type == MaskType::kF16) return mask_word_of(bytes, n, kHalfNegInf, word);
    if (type == MaskType::kF32) return mask_word_of(bytes, n, uint32_t{0xff800000u}, word);
    return word = n == kTileTokens ? ~uint64_t{0} : (uint64_t{1} << n) - 1, true;
}

} // namespace tightkv
