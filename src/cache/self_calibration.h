// The mean of the keys, measured by a cache on the first tokens of its own run (specification: mean=TOKENS). Until it is known rows are
// coded as they are, and kept aside; then the codes of all rows are made again from what was kept. TOKENS are those of the stream with the
// most of them (keys turn with their positions, so tokens of one sequence say more than first tokens of many). A first mean is taken from
// kFirstLook tokens and replaced whenever there are twice as many, up to TOKENS.
// Keys turn with their positions, and so does their mean: it is taken as that of texts as long as the cache, of half that length, and so
// on. The mean takes the place of a profile's, which is that of another text; the profile's matrices stay. Softmax does not see what is
// common to all keys of a head: taking it off changes nothing but the size of what has to be coded.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "cache/kept_rows.h"
#include "cache/rope.h"
#include "cache/tile_store.h"

namespace tightkv {

class SelfCalibration {
public:
    // The first positions of a sequence are left out: their keys are unlike all others.
    static constexpr int kLeftOut   = 4;
    static constexpr int kFirstLook = 64;
    static bool          left_out(int32_t position) { return position >= 0 && position < kLeftOut; } // -1: not known

    explicit SelfCalibration(int tokens) : wanted_(tokens), next_(tokens < kFirstLook ? tokens : kFirstLook) {}

    bool done() const { return wanted_ == 0; }
    // How the rows turn with their positions, where that is known.
    void set_rope(Rope rope) { rope_ = std::move(rope); }
    // A row that is about to be written, all KV heads: [n_kv_heads * head_dim]. position: -1 where it is not known. Rows with NaN or Inf
    // do not count.
    void observe(const TileStore& store, int stream, int64_t cell, int32_t position, const float* row);
    // A row that came without observe() (restored, copied, changed in place): it is coded again from its codes.
    void written(int stream, int64_t cell);
    // After the last observe() of a batch and before its rows are written. True: a mean was set just now.
    bool update(TileStore& store);
    // The cache was emptied: what was measured stays, what was kept is void.
    void clear();

private:
    int64_t              wanted_; // 0: done
    int64_t              next_;   // tokens of a stream at which the mean is taken next
    int64_t              counted_ = 0;
    std::vector<int64_t> counted_in_;                   // [stream]
    int64_t              first_ = INT32_MAX, seen_ = 0; // the first position that counted, and one more than the last
    std::vector<double>  sum_;                          // [n_kv_heads * head_dim]
    Rope                 rope_;
    KeptRows             kept_;
};

} // namespace tightkv
