// What the adapter did, counted; and the one way it speaks (stderr, "tightkv: …").
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace tightkv {

struct AdapterStats {
    std::atomic<int64_t> graphs{0};
    std::atomic<int64_t> native_writes{0};    // SET_ROWS on compressed rows
    std::atomic<int64_t> native_attention{0}; // FLASH_ATTN_EXT on compressed rows
    std::atomic<int64_t> generic_ops{0};      // decode -> host op -> re-encode
    std::atomic<int64_t> fallback_ops{0};     // ops of the host on cache tensors that were left as f16
    // 64 tokens of one KV head, for every block of rows a kernel takes at once; sparse V; weights in two passes (docs/kernels.md)
    std::atomic<int64_t> v_tiles{0}, v_tiles_skipped{0}, v_tiles_twice{0};
    std::atomic<int64_t> rows_read{0}, rows_written{0}; // by state save/restore and copies
    std::atomic<int64_t> refused_rows{0};               // NaN/Inf, stored as zeros
    std::atomic<int64_t> saturated_rows{0};
    std::atomic<int64_t> means_measured{0};   // tensors whose keys' mean was taken off (mean=)
    std::atomic<int64_t> self_profiles{0};    // caches that made their profile themselves (profile=auto)
    std::atomic<int64_t> cache_bytes{0};      // packed size of all live compressed caches
    std::atomic<int64_t> peak_cache_bytes{0}; // the most it has been

    void add_cache_bytes(int64_t n) {
        const int64_t now = cache_bytes += n;
        for (int64_t peak = peak_cache_bytes; now > peak && !peak_cache_bytes.compare_exchange_weak(peak, now);) {
        }
    }
};

AdapterStats& stats();
std::string   stats_json();
void          say(const std::string& line);    // one line on stderr
void          inform(const std::string& line); // the same for what works as it should: silent with TIGHTKV_QUIET=1
// Only the first time: the same line, or any line about the same thing where that is named.
void say_once(const std::string& line, const std::string& about = {});

} // namespace tightkv
