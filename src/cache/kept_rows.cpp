// Keeping rows, and coding all of a store again.
#include "cache/kept_rows.h"

#include <algorithm>
#include <utility>

namespace tightkv {

void KeptRows::keep(int stream, int64_t cell, const float* row, size_t n) { rows_[key(stream, cell)] = {stream, cell, {row, row + n}}; }

void KeptRows::written(int stream, int64_t cell) {
    rows_.erase(key(stream, cell));
    others_ = std::max(others_, cell + 1);
}

void KeptRows::recode(TileStore& store, std::vector<std::shared_ptr<const Transform>> per_head) const {
    const auto d = static_cast<size_t>(store.shape().head_dim);
    store.recode(std::move(per_head), others_);
    for (const auto& [_, row] : rows_)
        for (int h = 0; h < store.shape().n_kv_heads; h++)
            (void)store.write(row.stream, h, row.cell, row.x.data() + static_cast<size_t>(h) * d);
}

void KeptRows::clear() {
    rows_.clear();
    others_ = 0;
}

} // namespace tightkv
