// What a row format is: its name, bits and sizes. The list itself is formats.def; nothing else switches over formats by name.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tightkv {

// Version of the bytes below (transform signs, levels, packing). Any change of any byte changes it.
inline constexpr int kFormatVersion = 1;

inline constexpr int kMinHeadDim = 32, kMaxHeadDim = 1024;

enum class FormatKind : uint8_t { Levels, Trellis, Uniform, Exact };

enum class FormatId : uint8_t {
#define FORMAT(name, bits, kind) name,
#include "formats.def"
#undef FORMAT
};

struct Format {
    FormatId    id;
    const char* name;
    int         bits; // per code
    FormatKind  kind;

    bool transformed() const { return kind != FormatKind::Exact; }
    // Bytes of one canonical row (row.h): packed codes and, where there is a transform, the fp16 scale.
    size_t row_bytes(int head_dim) const { return size_t(head_dim) * bits / 8 + (transformed() ? 2 : 0); }
    double bits_per_value(int head_dim) const { return 8.0 * double(row_bytes(head_dim)) / head_dim; }
};

std::span<const Format> all_formats();
const Format&           format(FormatId id);
const Format*           find_format(std::string_view name); // null where there is none
std::string             format_names();                     // "turbo2, turbo3, …" for error messages

inline bool valid_head_dim(int d) { return d >= kMinHeadDim && d <= kMaxHeadDim && d % 32 == 0; }

} // namespace tightkv
