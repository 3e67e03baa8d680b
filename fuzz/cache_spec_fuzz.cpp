// Any text: parsed into something that prints and parses to itself, or refused with the position and an unchanged result.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cache/cache_spec.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {"turbo2", "turbo3", "turbo4",  "turbo8",   "f16", "turbo3t", "k=", "v=", "first=",
                                           "last=",  "sink=",  "window=", "profile=", ":",   ":",       "x",  "x2", "\""};
const size_t             kFuzzWordCount = sizeof kFuzzWords / sizeof *kFuzzWords;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace tightkv;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    CacheSpec              spec;
    spec.n_first           = 3;
    const CacheSpec before = spec;
    const Status    s      = parse_cache_spec(text, spec);
    if (!s.ok()) {
        const size_t at = s.message().find("position ");
        if (at == std::string::npos || !(spec == before)) std::abort();
        const long position = std::atol(s.message().c_str() + at + 9);
        if (position < 1 || position > static_cast<long>(size) + 1) std::abort();
        return 0;
    }
    CacheSpec back;
    if (!parse_cache_spec(spec.to_string(), back).ok() || back.to_string() != spec.to_string()) std::abort();
    if (!(spec.bits_per_value(4, 128, 64, 4096) > 0)) std::abort();
    return 0;
}
