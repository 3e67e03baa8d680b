// The mean of the keys, measured by a cache on the first tokens of its own run (specification: mean=TOKENS). Until it is known rows are
// coded as they are, and kept aside; then the codes of all rows are made again, once, from what was kept.
// Softmax does not see what is common to all keys of a head: taking it off changes nothing but the size of what has to be coded.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "cache/tile_store.h"

namespace tightkv {

class SelfCalibration {
public:
    // The first positions of a sequence are left out: their keys are unlike all others.
    static constexpr int kLeftOut = 4;

    explicit SelfCalibration(int tokens) : wanted_(tokens) {}

    bool done() const { return wanted_ == 0; }
    // A row that is about to be written, all KV heads: [n_kv_heads * head_dim]. position: -1 where it is not known. Rows with NaN or Inf
    // do not count.
    void observe(const TileStore& store, int stream, int64_t cell, int32_t position, const float* row);
    // Rows that came without observe() (a restored state), up to this cell: they are coded again from their codes.
    void written(int64_t cell) { cells_ = cell >= cells_ ? cell + 1 : cells_; }
    // After the last observe() of a batch and before its rows are written. True: the mean was set just now.
    bool update(TileStore& store);
    // The cache was emptied: what was measured stays, what was kept is void.
    void clear();

private:
    struct Kept {
        int     stream;
        int64_t cell;
    };
    int                 wanted_; // 0: done
    int64_t             counted_ = 0, cells_ = 0;
    std::vector<double> sum_;       // [n_kv_heads * head_dim]
    std::vector<Kept>   kept_;      // in the order of writing
    std::vector<float>  rows_;      // [kept][n_kv_heads * head_dim]
    size_t              batch_ = 0; // kept rows before this batch: those that were written already
};

} // namespace tightkv
