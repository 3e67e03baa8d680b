// Exact rows and the keys' mean inside the adapter, where a host takes back what it wrote, writes cells again, and has layers with and
// without positions; and keys that are far from their mean.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "adapter_host.h"
#include "tiny_model.h"

using namespace tightkv::tool;
using namespace tightkv::tool::test;

namespace {

using Logits = std::vector<std::vector<float>>; // by token

class AdapterRows : public AdapterTest {
protected:
    Model model(const TinyModel& m) const {
        const std::string path = folder + "/tiny.gguf";
        write_tiny_model(path, m);
        return Model(path);
    }
    // Decodes the batch, of which all tokens want logits, and appends these.
    static void decode(llama_context* h, const Model& m, const llama_batch& b, Logits& all) {
        EXPECT_EQ(llama_decode(h, b), 0);
        for (int i = 0; i < b.n_tokens; i++) {
            const float* x = llama_get_logits_ith(h, i);
            all.emplace_back(x, x + m.n_vocab());
        }
    }
    // Tokens begin to end - 1 of sequence 0, `step` at a time.
    static Logits decode(llama_context* h, const Model& m, int begin, int end, int step, int shift = 0) {
        Logits      all;
        llama_batch b = llama_batch_init(step, 0, 1);
        for (int at = begin; at < end; at += step) {
            b.n_tokens = std::min(step, end - at);
            for (int i = 0; i < b.n_tokens; i++) {
                b.token[i] = token(at + i + shift), b.pos[i] = at + i;
                b.n_seq_id[i] = 1, b.seq_id[i][0] = 0, b.logits[i] = 1;
            }
            decode(h, m, b, all);
        }
        llama_batch_free(b);
        return all;
    }
    static Logits decode(const Model& m, const std::string& spec, const HostOptions& o, int n, int step) {
        const Host h = host(m, spec, o);
        return decode(h.get(), m, 0, n, step);
    }
    // Size of the difference to that of what is wanted, of the tokens from `first` on.
    static double error(const Logits& got, const Logits& want, size_t first = 0) {
        double off = 0, size = 0;
        for (size_t t = first; t < want.size(); t++)
            for (size_t i = 0; i < want[t].size(); i++)
                off += std::pow(static_cast<double>(got[t][i]) - want[t][i], 2), size += std::pow(static_cast<double>(want[t][i]), 2);
        return std::sqrt(off / size);
    }
    static std::vector<double> divergence(const Logits& got, const Logits& want, size_t first) {
        const auto log_softmax = [](const std::vector<float>& x) {
            const double        top = *std::max_element(x.begin(), x.end());
            std::vector<double> p(x.begin(), x.end());
            double              sum = 0;
            for (const double v : p) sum += std::exp(v - top);
            for (double& v : p) v -= top + std::log(sum);
            return p;
        };
        std::vector<double> kld;
        for (size_t t = first; t < want.size(); t++) {
            const std::vector<double> p = log_softmax(want[t]), q = log_softmax(got[t]);
            kld.push_back(0);
            for (size_t i = 0; i < p.size(); i++) kld.back() += std::exp(p[i]) * (p[i] - q[i]);
        }
        return kld;
    }
};

struct Mean {
    double mean = 0, error = 0; // of the mean
    explicit Mean(const std::vector<double>& x) {
        double squares = 0;
        for (const double v : x) mean += v / static_cast<double>(x.size());
        for (const double v : x) squares += (v - mean) * (v - mean);
        error = std::sqrt(squares / static_cast<double>(x.size() * (x.size() - 1)));
    }
};

} // namespace

// A cache of a sliding window is a ring: its cells are written again and again. Exact rows must not outlive theirs, in neither cache.
TEST_F(AdapterRows, OfASlidingWindowWhoseCellsAreReused) {
    const Model       m = model({.sliding = true});
    const HostOptions o = {.cells = 1024, .batch = 64}; // the ring has 256
    for (const int step : {1, 3, 64}) {
        SCOPED_TRACE(std::to_string(step) + " tokens at a time");
        const Logits stock = decode(m, "off", o, 600, step);
        const auto   off   = [&](const char* spec) { return error(decode(m, spec, o, 600, step), stock); };
        // Single tokens have their sums rounded to f16 by the host, 2^-11 at each of four layers and what becomes of it behind them.
        EXPECT_LT(off("turbo2:window=1024"), 8 * 0x1p-11) << "every row is exact";
        const double codes = off("turbo2"), fine = off("turbo8");
        EXPECT_LT(fine, 0.1 * codes);
        EXPECT_LT(off("turbo2:sink=4:window=24"), 0.5 * codes) << "all that three of four layers see is exact";
        EXPECT_LT(off("turbo8:sink=4:window=8"), fine);
    }
}

// What is written and taken back, as of draft tokens that a model does not accept. Where the host writes the same cells again the bits are
// those of a run without; a ring that comes to its end goes on in others, whose tiles round otherwise.
TEST_F(AdapterRows, TakenBackLeaveNoTrace) {
    constexpr int     kTokens = 330, kRing = 250;
    const HostOptions o = {.cells = 512};
    for (const bool sliding : {false, true}) {
        const Model m = model({.sliding = sliding});
        for (const std::string spec : {"turbo3:sink=4:window=", "turbo3t:sink=4:window="}) {
            SCOPED_TRACE(spec + (sliding ? "8, sliding window" : "8"));
            const Logits undisturbed = decode(m, spec + "8", o, kTokens, 1), narrow = decode(m, spec + "7", o, kTokens, 1);
            const Host   h   = host(m, spec + "8", o);
            Logits       got = decode(h.get(), m, 0, 60, 1);
            for (int at = 60; at < kTokens; at += 3) { // three other tokens come and go
                decode(h.get(), m, at, at + 3, 3, 11);
                ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(h.get()), 0, at, -1));
                for (auto& x : decode(h.get(), m, at, at + 3, 1)) got.push_back(std::move(x));
            }
            ASSERT_EQ(got.size(), undisturbed.size());
            for (int t = 0; t < (sliding ? kRing : kTokens); t++) ASSERT_EQ(got[t], undisturbed[t]) << "token " << t;
            EXPECT_LT(error(got, undisturbed, kRing), 0.3 * error(narrow, undisturbed, kRing)) << "a row of the window got lost";
        }
    }
}

// Sequences in one stream share the places of its window, and see their own rows alone.
TEST_F(AdapterRows, OfSequencesInOneStream) {
    constexpr int     kTokens = 150, kSequences = 3;
    const HostOptions o           = {.cells = 512, .sequences = kSequences};
    const Model       m           = model({});
    const auto        interleaved = [&](const std::string& spec) {
        const Host  h = host(m, spec, o);
        Logits      all;
        llama_batch b = llama_batch_init(kSequences, 0, 1);
        for (int at = 0; at < kTokens; at++) {
            b.n_tokens = kSequences;
            for (int s = 0; s < kSequences; s++) {
                b.token[s] = token(at + 17 * s), b.pos[s] = at;
                b.n_seq_id[s] = 1, b.seq_id[s][0] = s, b.logits[s] = 1;
            }
            decode(h.get(), m, b, all);
        }
        llama_batch_free(b);
        return all;
    };
    const Logits stock = interleaved("off");
    const auto   off   = [&](const char* spec) { return error(interleaved(spec), stock); };
    EXPECT_LT(off("turbo2:window=1024"), 8 * 0x1p-11);
    const double codes = off("turbo2"), narrow = off("turbo2:window=24"), wide = off("turbo2:window=96");
    EXPECT_LT(wide, narrow);
    EXPECT_LT(narrow, codes);
}

// Layers without a rotary embedding, in a cache of their own, have the positions of those with one: the first tokens see sinks alone.
TEST_F(AdapterRows, PositionsAreTheGraphs) {
    const Model       m = model({.sliding = true});
    const HostOptions o = {.cells = 512};
    for (const int step : {1, 4}) {
        const Logits stock = decode(m, "off", o, 4, step);
        EXPECT_LT(error(decode(m, "turbo2:sink=4", o, 4, step), stock), 8 * 0x1p-11);
        EXPECT_GT(error(decode(m, "turbo2:sink=3", o, 4, step), stock), 0.05);
    }
}

// One vector added to all keys of a head changes no softmax. Here it is of up to 100 times the keys' size, and taken off as their mean.
// Positions turn nothing, so that keys keep it through the rotary embedding. f16 rounds larger keys more: the divergence of the host's own
// cache says how much more.
TEST_F(AdapterRows, AConstantInAllKeysChangesNothing) {
    constexpr int     kTokens = 500, kMeasured = 128;
    constexpr float   kKeySize = 4; // deviation of this model's keys
    const HostOptions o        = {.cells = 512, .batch = 64, .rope_freq_scale = 1e-9f};
    for (const char* format : {"turbo3", "turbo4t"})
        for (const int step : {1, 64}) {
            const Model  plain = model({});
            const Logits stock = decode(plain, "off", o, kTokens, step);
            const auto   kld   = [&](const Model& m, const std::string& spec) {
                return divergence(decode(m, spec, o, kTokens, step), stock, kMeasured);
            };
            const std::string spec = std::string(format) + ":mean=64";
            const Mean        before(kld(plain, spec));
            for (const float ratio : {1.0f, 10.0f, 100.0f}) {
                SCOPED_TRACE(spec + ", " + std::to_string(step) + " tokens at a time, ratio " + std::to_string(ratio));
                const Model  m     = model({.key_bias = kKeySize * ratio});
                const double after = Mean(kld(m, spec)).mean, rounding = Mean(kld(m, "off")).mean;
                EXPECT_LE(std::fabs(after - before.mean), 2 * before.error + rounding) << before.mean << " became " << after;
                if (ratio >= 10) {
                    EXPECT_GT(Mean(kld(m, format)).mean, 3 * before.mean) << "without the mean";
                }
            }
        }
}
