// Rows kept as they came while the transform they are coded with is still to be replaced by one that is measured on them.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "cache/tile_store.h"

namespace tightkv {

class KeptRows {
public:
    // All KV heads of a cell: [n_kv_heads * head_dim]; the last row of a cell counts.
    void keep(int stream, int64_t cell, const float* row, size_t n);
    // The cell was written with a row that nobody kept (restored, copied, changed in place): it is coded again from its codes.
    void written(int stream, int64_t cell);
    // Sets the transforms, one per head, and codes all rows again: kept ones from what was kept, the others from their codes.
    void recode(TileStore& store, std::vector<std::shared_ptr<const Transform>> per_head) const;
    void clear();

private:
    struct Row {
        int                stream;
        int64_t            cell;
        std::vector<float> x;
    };
    static uint64_t key(int stream, int64_t cell) { return static_cast<uint64_t>(stream) << 32 | static_cast<uint64_t>(cell); }

    int64_t                           others_ = 0; // cells below this one may hold rows that nobody kept
    std::unordered_map<uint64_t, Row> rows_;
};

} // namespace tightkv
