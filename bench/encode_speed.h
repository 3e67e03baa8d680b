// Speed of the write path on one core: rows through the chosen encoder, after they were compared with the scalar reference bit for bit.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cache/tile_store.h"

namespace tightkv::bench {

class EncodeSpeed {
public:
    static constexpr int kRows = 1024; // at most 4 MB of f32: what is measured is the encoder, not memory

    EncodeSpeed(const Format& f, int head_dim, bool dense = false); // a format with a transform; dense: with a mean and a matrix
    // Empty when every row has the scalar reference's codes, scale and status.
    std::string complaint();
    // Seconds per row, over whole passes for at least this long.
    double encode(double least_seconds);            // transform and quantise
    double write(Operand op, double least_seconds); // and put into the tiles of a store
    void   encode_pass();                           // all rows once

private:
    void         encode_group(int r, RowStatus* status); // kEncodeRows rows from r on, into coded_
    const float* row_at(int r) const { return x_.data() + static_cast<size_t>(r) * head_dim_; }

    const Format&                    format_;
    int                              head_dim_;
    std::shared_ptr<const Transform> transform_;
    std::vector<float>               x_;
    std::unique_ptr<TileStore>       stores_[2]; // K, V
    CodedRow                         coded_[kEncodeRows]{};
};

} // namespace tightkv::bench
