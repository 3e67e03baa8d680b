// llama.cpp in the test's own process, with a cache of ours or its own: a host that checks nothing itself.
#pragma once
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine_llama.h"
#include "engine_llama_private.h"

namespace tightkv::tool::test {

struct FreeContext {
    void operator()(llama_context* c) const { llama_free(c); }
};
using Host = std::unique_ptr<llama_context, FreeContext>;

struct HostOptions {
    int   cells = 128, batch = 64, sequences = 1; // all in one stream
    float rope_freq_scale = 0;                    // 0: the model's
};

inline bool adapter_started() {
    static const bool started = (start_engine({}), true);
    return started && adapter_loaded();
}

// spec: "off" is the host's f16 cache.
inline Host host(const Model& m, const std::string& spec, const HostOptions& o = {}) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = static_cast<uint32_t>(o.cells), p.n_batch = p.n_ubatch = static_cast<uint32_t>(o.batch);
    p.n_threads = p.n_threads_batch = 1;
    p.flash_attn_type               = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.rope_freq_scale               = o.rope_freq_scale;
    p.swa_full                      = false;
    p.kv_unified                    = true;
    p.n_seq_max                     = static_cast<uint32_t>(o.sequences);
    set_cache_spec(spec.c_str());
    Host h(llama_init_from_model(m.handle(), p));
    set_cache_spec("off");
    return h;
}

class AdapterTest : public testing::Test {
protected:
    const std::string folder = testing::TempDir() + "adapter." + std::to_string(::getpid()); // empty, of this test

    void SetUp() override {
        ASSERT_TRUE(adapter_started());
        std::filesystem::create_directories(folder);
    }
    void TearDown() override { std::filesystem::remove_all(folder); }
};

// Token i of a text that says nothing, of the vocabulary of tiny_model.h.
inline llama_token token(int i) { return 260 + i * 7 % 90; }

} // namespace tightkv::tool::test
