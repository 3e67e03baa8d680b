// Sharing the work of the rival kernels among threads.
#include "own_kernels.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <numbers>

#include "base/softmax_state.h"
#include "own_avx2.h"

namespace tightkv::bench {

namespace {

constexpr int kBlockRows    = 128;
constexpr int kMinRunTokens = 512;

// Units in descending order: under a causal mask the last ones are the longest.
template <class Work> void share_out(int64_t units, ThreadTeam& team, Work work) {
    std::atomic<int64_t> left{units};
    team.run([&](int) {
        for (int64_t u; (u = left.fetch_sub(1) - 1) >= 0;) work(u);
    });
}

struct Floats { // aligned, zeroed, per thread
    struct Free {
        void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<float[], Free> p;
    size_t                         n = 0;
    float*                         get(size_t wanted) {
                                if (n < wanted) {
                                    p.reset(static_cast<float*>(::operator new[](wanted * sizeof(float), std::align_val_t{64})));
                                    n = wanted;
        }
                                std::fill_n(p.get(), wanted, 0.0f);
                                return p.get();
    }
};
thread_local Floats scratch;

float log2_scale(const AttentionShape& s) { return s.scale() * std::numbers::log2e_v<float>; }

} // namespace

bool own_kernels_available() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

#if defined(__x86_64__)

void own_f16_attend(const OwnCall& c, ThreadTeam& team) {
    const AttentionShape& s = c.shape;
    const int             d = s.head_dim, group = s.group(), parts = (group + kOwnRows - 1) / kOwnRows;
    const int64_t         blocks = static_cast<int64_t>(s.n_tokens) * s.n_kv_heads * parts;
    const int64_t         runs =
        team.size() == 1 ? 1 : std::clamp<int64_t>(2 * team.size() / blocks, 1, std::max<int64_t>(1, s.n_kv / kMinRunTokens));
    const int64_t      length     = (s.n_kv + runs - 1) / runs;
    const size_t       row_floats = static_cast<size_t>(d) + 2; // m, l, o
    std::vector<float> partial(static_cast<size_t>(blocks * runs) * kOwnRows * row_floats);
    share_out(blocks * runs, team, [&](int64_t unit) {
        const int64_t block = unit / runs, run = unit % runs;
        const int     token = static_cast<int>(block / parts / s.n_kv_heads), kv_head = static_cast<int>(block / parts % s.n_kv_heads);
        const int     head0 = kv_head * group + static_cast<int>(block % parts) * kOwnRows;
        const int     heads = std::min(kOwnRows, (kv_head + 1) * group - head0),
                  rows      = static_cast<int>(std::bit_ceil(static_cast<unsigned>(heads)));
        float* const q      = scratch.get(static_cast<size_t>(2 * kOwnRows) * d);
        float* const o      = q + static_cast<size_t>(kOwnRows) * d;
        float        m[kOwnRows], l[kOwnRows] = {};
        std::fill_n(m, kOwnRows, kNegInf);
        for (int g = 0; g < heads; g++)
            for (int i = 0; i < d; i++) q[g * d + i] = c.q[s.row(token, head0 + g) + i] * log2_scale(s);
        const int64_t head_at = kv_head * s.n_kv * d;
        own_f16_run({c.k + head_at, c.v + head_at, run * length, std::min((run + 1) * length, s.visible(token)), d, rows, q, m, l, o});
        float* part = partial.data() + static_cast<size_t>(unit) * kOwnRows * row_floats;
        for (int g = 0; g < heads; g++, part += row_floats) {
            part[0] = m[g] / std::numbers::log2e_v<float>, part[1] = l[g]; // SoftmaxState thinks in base e
            std::copy_n(o + g * d, d, part + 2);
        }
    });
    for (int64_t block = 0; block < blocks; block++) {
        const int token = static_cast<int>(block / parts / s.n_kv_heads), kv_head = static_cast<int>(block / parts % s.n_kv_heads);
        const int head0 = kv_head * group + static_cast<int>(block % parts) * kOwnRows;
        for (int g = 0; g < std::min(kOwnRows, (kv_head + 1) * group - head0); g++) {
            float* const out = c.out + s.row(token, head0 + g);
            SoftmaxState sum{kNegInf, 0.0f, out};
            std::fill_n(out, d, 0.0f);
            for (int64_t run = 0; run < runs; run++) {
                float* const part = partial.data() + (static_cast<size_t>(block * runs + run) * kOwnRows + g) * row_floats;
                sum.merge({part[0], part[1], part + 2}, static_cast<size_t>(d));
            }
            sum.normalize(static_cast<size_t>(d));
        }
    }
}

void own_f32_attend(const OwnCall& c, ThreadTeam& team) {
    const AttentionShape& s = c.shape;
    const int             d = s.head_dim, group = s.group(), all = s.n_tokens * group; // row = token * group + head in group
    const int             per_head = (all + kBlockRows - 1) / kBlockRows;
    share_out(static_cast<int64_t>(s.n_kv_heads) * per_head, team, [&](int64_t unit) {
        const int    kv_head = static_cast<int>(unit % s.n_kv_heads), row0 = static_cast<int>(unit / s.n_kv_heads) * kBlockRows;
        const int    rows = std::min(kBlockRows, all - row0), panels = (rows + kOwnPanel - 1) / kOwnPanel;
        const size_t tile = static_cast<size_t>(kOwnTile) * d, block = static_cast<size_t>(kBlockRows) * d;
        float* const k_tile = scratch.get(2 * tile + 2 * block + kOwnTile * kOwnPanel);
        float *const q = k_tile + 2 * tile, *const o = q + block;
        int64_t visible[kBlockRows] = {}; // lanes without a row see nothing
        float   m[kBlockRows], l[kBlockRows] = {};
        std::fill_n(m, kBlockRows, kNegInf);
        const auto lane = [&](int r, int i) { return static_cast<size_t>(r / kOwnPanel * d + i) * kOwnPanel + r % kOwnPanel; };
        const auto row  = [&](int r) { return s.row((row0 + r) / group, kv_head * group + (row0 + r) % group); };
        for (int r = 0; r < rows; r++) {
            visible[r] = s.visible((row0 + r) / group);
            for (int i = 0; i < d; i++) q[lane(r, i)] = c.q[row(r) + i] * log2_scale(s);
        }
        const int64_t head_at = kv_head * s.n_kv * d;
        own_f32_block({c.k + head_at, c.v + head_at, d, panels, q, visible, m, l, o, k_tile, k_tile + tile, o + block});
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < d; i++) c.out[row(r) + i] = o[lane(r, i)] / l[r];
    });
}

#else

void own_f16_attend(const OwnCall&, ThreadTeam&) {}
void own_f32_attend(const OwnCall&, ThreadTeam&) {}

#endif

} // namespace tightkv::bench
