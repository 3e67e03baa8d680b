// Saved states: any bytes, and a good state with bytes changed whose checksum was put right again, so that the checks behind it are
// reached. A refused state must leave the cache as it was; an accepted one must save to the same bytes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cache/kv_cache.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {"tkvstate", "k=turbo4:v=f16", "turbo4"};
const size_t             kFuzzWordCount = sizeof kFuzzWords / sizeof *kFuzzWords;

namespace {

using namespace tightkv;

constexpr int64_t kCells = 66;

std::unique_ptr<KvCache> make() {
    CacheSpec                spec;
    std::unique_ptr<KvCache> cache;
    if (!parse_cache_spec("k=turbo4:v=f16", spec).ok() || !KvCache::create(spec, {2, 1, 32, 64, 1, kCells}, cache).ok()) std::abort();
    return cache;
}

uint64_t fnv1a(const uint8_t* p, size_t n) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

std::vector<uint8_t> saved(const KvCache& c, int64_t n) {
    std::vector<uint8_t> bytes(c.state_bytes(n));
    c.save_state(0, n, bytes.data());
    return bytes;
}

void load(const std::vector<uint8_t>& bytes) {
    static const std::unique_ptr<KvCache> cache  = make();
    static std::vector<uint8_t>           before = saved(*cache, kCells);
    int64_t                               n      = -1;
    const std::unique_ptr<uint8_t[]>      exact(new uint8_t[bytes.size()]); // one byte too far is a heap overflow
    if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
    if (!cache->load_state(0, exact.get(), bytes.size(), n).ok()) {
        if (n != -1 || saved(*cache, kCells) != before) std::abort();
        return;
    }
    if (n < 0 || n > kCells || saved(*cache, n) != bytes) std::abort();
    before = saved(*cache, kCells);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    load({data, data + size});
    if (size < 1) return 0;
    static const std::unique_ptr<KvCache> good  = make();
    std::vector<uint8_t>                  bytes = saved(*good, data[0] % (kCells + 1));
    for (size_t i = 1; i + 3 <= size && i < 30; i += 3) { // position, value; every other one in the header
        const size_t at = (data[i] | data[i + 1] << 8) % (i % 2 ? 64 : bytes.size());
        if (at < bytes.size() - 8) bytes[at] = data[i + 2];
    }
    if (data[size - 1] % 4 == 0) bytes.resize(bytes.size() - std::min<size_t>(bytes.size(), data[size - 1]));
    if (bytes.size() >= 8) {
        const uint64_t sum = fnv1a(bytes.data(), bytes.size() - 8);
        for (int b = 0; b < 8; b++) bytes[bytes.size() - 8 + static_cast<size_t>(b)] = static_cast<uint8_t>(sum >> (8 * b));
    }
    load(bytes);
    return 0;
}
