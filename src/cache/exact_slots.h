// How many rows the table of exact rows has (exact_rows.h): part of the allocation and of the bits per value.
#pragma once
#include <algorithm>
#include <cstdint>

namespace tightkv {

// A batch of this many tokens finds the windows of all of them in the table.
inline constexpr int kExactFewTokens = 4;

// Sinks of one sequence per 1024 cells, at most of 64: a long cache is shared by more sequences. Beyond, the oldest make room. No more
// slots than cells.
inline int exact_sink_slots(int n_sink, int64_t n_cells) {
    return static_cast<int>(std::min(n_cells, n_sink * std::clamp<int64_t>(n_cells / 1024, 1, 64)));
}
inline int exact_window_slots(int n_window, int64_t n_cells) {
    const int window = static_cast<int>(std::min<int64_t>(n_window, n_cells));
    return window > 0 ? window + kExactFewTokens - 1 : 0;
}
inline int exact_slots(int n_sink, int n_window, int64_t n_cells) {
    return exact_sink_slots(n_sink, n_cells) + exact_window_slots(n_window, n_cells);
}

} // namespace tightkv
