// Saved states: any bytes, and a good state with bytes changed whose checksum was put right again, so that the checks behind it are
// reached. A refused state must leave the cache as it was; an accepted one must save to the same bytes, if it has codes alone: exact rows
// of a state push each other out where there are too many, and keys under another mean are coded again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cache/kv_cache.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {"tkvstate", "k=turbo4:v=f16", "turbo4", "k=turbo4:v=f16:sink=2:window=3:mean=16"};
const size_t             kFuzzWordCount = sizeof kFuzzWords / sizeof *kFuzzWords;

namespace {

using namespace tightkv;

constexpr int64_t kCells = 66;

constexpr const char* kSpecs[] = {"k=turbo4:v=f16", "k=turbo4:v=f16:sink=2:window=3:mean=16"};

std::unique_ptr<KvCache> make(int which) {
    CacheSpec                spec;
    std::unique_ptr<KvCache> cache;
    if (!parse_cache_spec(kSpecs[which], spec).ok() || !KvCache::create(spec, {2, 1, 32, 64, 1, kCells}, cache).ok()) std::abort();
    std::vector<KvCache::Token> tokens;
    for (int i = 0; i < 40; i++) tokens.push_back({0, i, i});
    cache->begin_batch(tokens);
    std::vector<float> x(tokens.size() * 64);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i % 37) - 15.0f;
    for (int layer = 0; layer < 2; layer++)
        for (const Operand op : {Operand::K, Operand::V}) cache->append(layer, op, x.data());
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

struct Target {
    std::unique_ptr<KvCache> cache;
    std::vector<uint8_t>     before;
    explicit Target(int which) : cache(make(which)), before(saved(*cache, kCells)) {}
};

void load(const std::vector<uint8_t>& bytes) {
    static Target                    targets[] = {Target(0), Target(1)};
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]); // one byte too far is a heap overflow
    if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
    for (Target& t : targets) {
        int64_t n = -1;
        if (!t.cache->load_state(0, exact.get(), bytes.size(), n).ok()) {
            if (n != -1 || saved(*t.cache, kCells) != t.before) std::abort();
            continue;
        }
        if (n < 0 || n > kCells || (&t == targets && saved(*t.cache, n) != bytes)) std::abort();
        t.before = saved(*t.cache, kCells);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    load({data, data + size});
    if (size < 1) return 0;
    static const std::unique_ptr<KvCache> good[] = {make(0), make(1)};
    std::vector<uint8_t>                  bytes  = saved(*good[data[0] / 128], data[0] % (kCells + 1));
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
