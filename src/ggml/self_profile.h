// profile=auto: a cache makes the profile of its model itself, of the first tokens of its own run. One per buffer, that is per KV cache of
// the host.
//
// Until kMinCalibrationTokens tokens were seen in every layer, rows are coded as they are without a profile and kept aside (KeptRows), and
// statistics of them and of the queries are taken. After the graph that computes the last of these tokens the transforms are made, and all
// rows are coded again. Where that cannot be done one line says why, and the cache goes on without.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cache/calibrate.h"
#include "ggml.h"

namespace tightkv {

class CacheTensor;

class SelfProfile {
public:
    // Neither statistics nor rows are wanted any more.
    bool done() const { return done_; }

    // All graphs of the batch before have run. tensors: all compressed ones of the buffer, as below.
    void begin_batch(std::span<CacheTensor* const> tensors);
    // One thread, before the rows of a SET_ROWS node are written.
    void add_rows(CacheTensor& c, const ggml_tensor* node);
    // One thread, before attention over all KV heads of k. q: [head_dim, token of the stream, head, stream].
    void add_queries(const CacheTensor& k, const ggml_tensor* q);
    // A graph has run, and no other one is running.
    void graph_done(std::span<CacheTensor* const> tensors);

private:
    enum Kind : uint8_t { kKeys, kValues, kQueries };
    using Counts = std::array<int64_t, 3>; // tokens by Kind

    // Every layer of these has enough. whole_batch: layers that were not seen at all are not used by the model.
    bool ready(std::span<CacheTensor* const> tensors, bool whole_batch) const;
    void try_solve(std::span<CacheTensor* const> tensors);
    void solve(std::span<CacheTensor* const> tensors);
    void stop(std::span<CacheTensor* const> tensors);
    void give_up(std::span<CacheTensor* const> tensors, const std::string& why);

    bool                  done_ = false, running_ = false; // running: a graph that has not ended, or that failed
    Calibration           statistics_;
    std::map<int, Counts> seen_;              // by block; of those with something to transform
    int64_t               last_position_ = 0; // of the tokens seen
    std::vector<float>    rows_;              // of one node
};

} // namespace tightkv
