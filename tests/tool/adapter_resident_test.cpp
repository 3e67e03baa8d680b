// Memory of a compressed cache inside llama.cpp: a full one takes what the adapter says. The host's own share (cells, graph) is no larger
// than beside its f16 cache, whose size is known, and the same beside two caches of ours: their memory differs by what they are said to.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "engine_llama.h"
#include "speed_lane.h"
#include "tests/library/resident.h"
#include "tiny_model.h"

using namespace tightkv;
using namespace tightkv::tool;
using namespace tightkv::tool::test;

namespace {

constexpr int kBlocks = 120;

struct Taken {
    double resident, cache; // bytes
};

// A context with all of its cells filled.
Taken full_cache(const Model& model, const std::string& cache) {
    const CacheChoice  choice = parse_cache(cache);
    std::vector<Token> tokens;
    for (int i = 0; i < kDepthBlock; i++) tokens.push_back(260 + i * 7 % 90);
    const double before  = tightkv::test::resident_bytes();
    auto         context = std::make_unique<Context>(
        model, choice, ContextOptions{.tokens = kBlocks * kDepthBlock, .sequences = kBlocks + 1, .unified = true, .outputs = 1});
    ContextLane<Context> lane(cache, std::move(context), tokens);
    EXPECT_TRUE(lane.fill(kBlocks));
    return {tightkv::test::resident_bytes() - before, static_cast<double>(lane.context().cache_bytes())};
}

} // namespace

TEST(AdapterResident, AFullCacheTakesWhatTheAdapterSays) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "sanitizers keep freed memory, and bytes beside every byte";
#endif
    if (tightkv::test::resident_bytes() < 0) GTEST_SKIP() << "this system does not say how much memory is in use";
    start_engine({});
    ASSERT_TRUE(adapter_loaded());
    const std::string path = testing::TempDir() + "adapter_resident." + std::to_string(::getpid()) + ".gguf";
    write_tiny_model(path, {.head_dim = 256}); // caches of 16 MB and more: beside them a page here or there is little
    {
        const Model model(path);
        for (const char* cache : {"f16", "turbo4"}) // code, tables and the allocator's memory become resident
            (void)full_cache(model, cache);
        // Without exact rows: what those take once for all layers would be a lot beside this model's only one (docs/cpu.md).
        const Taken f16 = full_cache(model, "f16"), turbo4 = full_cache(model, "turbo4");
        for (const char* cache : {"turbo4", "k=turbo4:v=turbo3", "turbo2"}) {
            const Taken ours = full_cache(model, cache);
            EXPECT_LT(ours.resident - ours.cache, f16.resident - f16.cache + 0.02 * ours.cache) << cache;
            EXPECT_NEAR(turbo4.resident - ours.resident, turbo4.cache - ours.cache, 0.02 * ours.cache) << cache;
        }
    }
    std::filesystem::remove(path);
}
