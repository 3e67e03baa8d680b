// The rows of one operand (K or V) of one layer: [stream][kv_head][tile], random cell writes, in the format given.
// Memory is reserved at once and committed by the system as cells are first written, so nothing is ever moved as a cache fills; on which
// memory node, numa.h says.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/status.h"
#include "codec/tile.h"
#include "cpu/kernel_table.h"

namespace tightkv {

struct StoreShape {
    int     n_streams = 1, n_kv_heads = 1, head_dim = 0;
    int64_t n_cells = 0; // per stream
};

// A row to write and where it goes. x: [head_dim] f32.
struct StoreRow {
    int          stream, head;
    int64_t      cell;
    const float* x;
};

// Could an encoder have made this canonical row? Its scale is finite and not negative, no code of turbo8 is -128, or every f16 value is
// finite.
bool possible_row(const Format& f, int head_dim, const uint8_t* bytes);

class TileStore {
public:
    // head_dim must be valid; memory may run out (kOutOfMemory).
    static Status create(const Format& f, Operand op, const StoreShape& shape, std::unique_ptr<TileStore>& out);
    ~TileStore();
    TileStore(const TileStore&)            = delete;
    TileStore& operator=(const TileStore&) = delete;

    const Format&     format() const { return format_; }
    Operand           operand() const { return operand_; }
    const StoreShape& shape() const { return shape_; }
    size_t            bytes() const { return bytes_; } // packed size of all cells, whole tiles

    // x: [head_dim] f32. A refused row is stored as zeros. Concurrent calls must not touch the same (stream, head, tile).
    RowStatus write(int stream, int head, int64_t cell, const float* x);
    // One after the other, but up to kEncodeRows at a time are encoded together, which takes two thirds of the time. status: [rows.size()].
    void write(std::span<const StoreRow> rows, RowStatus* status);
    // x: [head_dim].
    void read(int stream, int head, int64_t cell, float* x) const;
    // Canonical bytes, format().row_bytes(head_dim) of them. A row that no encoder makes (possible_row) is
    // stored as zeros: one damaged cell must not reach the others of its tile.
    void write_canonical(int stream, int head, int64_t cell, const uint8_t* bytes);
    void read_canonical(int stream, int head, int64_t cell, uint8_t* bytes) const;
    // All cells become zero rows; gives the memory back to the system.
    void clear();

    // The transform of a head: transform_for(head_dim) until others are set. Rows that are already there are not touched: whoever changes
    // a transform writes them again. One per head; not while other threads use the store.
    const Transform& transform(int head) const { return *transforms_[static_cast<size_t>(head)]; }
    void             set_transforms(std::vector<std::shared_ptr<const Transform>> per_head);

    // Other transforms for the rows that are there, cells [0, n) of every stream: decoded with the old, coded with the new.
    void recode(std::vector<std::shared_ptr<const Transform>> per_head, int64_t n);

    TileRun tiles(int stream, int head) const { return {head_base(stream, head), format_, shape_.head_dim}; }

private:
    void      before_write();
    RowStatus write_exact(uint16_t* row, const float* x) const;
    TileStore(const Format& f, Operand op, const StoreShape& shape);
    uint8_t* head_base(int stream, int head) const { return base_ + (size_t(stream) * shape_.n_kv_heads + head) * head_bytes_; }
    uint8_t* tile_of(int stream, int head, int64_t cell) const {
        return head_base(stream, head) + size_t(cell / kTileTokens) * tile_bytes_;
    }

    Format                                        format_;
    Operand                                       operand_;
    StoreShape                                    shape_;
    size_t                                        tile_bytes_ = 0, head_bytes_ = 0, bytes_ = 0;
    std::vector<std::shared_ptr<const Transform>> own_;        // keeps them alive; empty: the default
    std::vector<const Transform*>                 transforms_; // [n_kv_heads]
    uint8_t*                                      base_   = nullptr;
    void*                                         map_    = nullptr; // what base_ lies in
    size_t                                        mapped_ = 0;
    bool                                          spread_ = false; // pages are to be spread over memory nodes, by the first writer
    std::once_flag                                spread_once_;
};

} // namespace tightkv
