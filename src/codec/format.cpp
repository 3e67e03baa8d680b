// The table behind format.h.
#include "codec/format.h"

#include <array>

namespace tightkv {

namespace {
constexpr Format kFormats[] = {
#define FORMAT(name, bits, kind) {FormatId::name, #name, bits, FormatKind::kind},
#include "formats.def"
#undef FORMAT
};
} // namespace

std::span<const Format> all_formats() { return kFormats; }

const Format& format(FormatId id) { return kFormats[static_cast<size_t>(id)]; }

const Format* find_format(std::string_view name) {
    for (const Format& f : kFormats)
        if (name == f.name) return &f;
    return nullptr;
}

std::string format_names() {
    std::string s;
    for (const Format& f : kFormats) s += (s.empty() ? "" : ", ") + std::string(f.name);
    return s;
}

} // namespace tightkv
