// Profiles: any bytes, and a good profile with bytes changed whose checksum was put right again, so that the checks behind it are reached.
// What is refused leaves the profile as it was; what is accepted must be written to the same bytes, and its transforms must work.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/checksum.h"
#include "cache/profile.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {"tkvcalib", "turbo4", "llama"};
const size_t             kFuzzWordCount = sizeof kFuzzWords / sizeof *kFuzzWords;

namespace {

using namespace tightkv;

std::vector<uint8_t> good_profile() {
    constexpr int d = 32;
    HeadProfile   dense{std::vector<float>(d, 0.5f), std::vector<float>(d * d), std::vector<float>(d * d)};
    for (int i = 0; i < d; i++) dense.matrix[i * d + i] = 2.0f, dense.inverse[i * d + i] = 0.5f;
    const HeadProfile mean{std::vector<float>(d, -1.0f), {}, {}}, none;
    Profile           p;
    p.architecture = "llama", p.made_from = "a text";
    p.layers = {{0, d, d, 7, std::nullopt, FormatId::turbo4, {dense, none}, {mean, none}}, {3, d, d, 0, {}, {}, {none}, {dense}}};
    return p.write();
}

void read(const std::vector<uint8_t>& bytes) {
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]); // one byte too far is a heap overflow
    if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
    Profile p;
    p.architecture = "untouched";
    if (!Profile::read({exact.get(), bytes.size()}, p).ok()) {
        if (p.architecture != "untouched" || !p.layers.empty()) std::abort();
        return;
    }
    if (p.write() != bytes || p.fingerprint().size() != 16) std::abort();
    for (const LayerProfile& l : p.layers)
        for (const Operand op : {Operand::K, Operand::V})
            for (const auto& t : p.transforms(l, op, true)) {
                std::vector<float> x(static_cast<size_t>(l.head_dim(op)), 1.0f);
                t->forward(x.data());
                if (t->head_dim() != l.head_dim(op)) std::abort();
            }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    read({data, data + size});
    if (size < 1) return 0;
    static const std::vector<uint8_t> good  = good_profile();
    std::vector<uint8_t>              bytes = good;
    for (size_t i = 0; i + 3 <= size && i < 30; i += 3) { // position, value; every other one in what comes first
        const size_t at = (data[i] | data[i + 1] << 8) % (i % 2 ? 96 : bytes.size());
        if (at < bytes.size() - 8) bytes[at] = data[i + 2];
    }
    if (data[size - 1] % 4 == 0) bytes.resize(bytes.size() - data[size - 1]);
    if (bytes.size() >= 8) {
        const uint64_t sum = fnv1a(bytes.data(), bytes.size() - 8);
        for (int b = 0; b < 8; b++) bytes[bytes.size() - 8 + static_cast<size_t>(b)] = static_cast<uint8_t>(sum >> (8 * b));
    }
    read(bytes);
    return 0;
}
