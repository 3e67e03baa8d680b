// The cache specification: one grammar for the adapter's variable, the C API and the command line.
//
//   spec   = "auto" | format | part (":" part)*          e.g. turbo3   k=turbo4:v=turbo3   k=turbo4:v=turbo3:first=f16x2:last=turbo8x2
//   part   = "k=" format | "v=" format | "first=" format "x" count | "last=" format "x" count
//          | "sink=" count | "window=" count | "mean=" tokens | "sparse_v=" threshold | "profile=" ( file | "auto" )
// first/last name the format of K and V of boundary layers, counted over the layers that have a KV cache.
// sparse_v: values of a tile are left out when every weight in it is below this part of the largest one so far; 0 turns that off.
// sink/window: rows kept in f16 beside the codes, the first positions of every sequence and the newest rows (exact_rows.h).
// mean: the mean of the keys is measured on this many tokens and taken off from then on (self_calibration.h); 0: none.
// profile: a file that `tightkv calibrate` wrote (cache/profile.h); in double quotes where its name holds a ':' or is auto.
// profile=auto: the llama.cpp adapter makes the profile itself, of the first tokens of its own run (ggml/self_profile.h).
// auto: kAutoSpec, the best that needs no profile within 3.6 bits per value at 2048 cells (docs/quality.md has the measurement).
#pragma once
#include <string>
#include <string_view>

#include "base/status.h"
#include "codec/format.h"

namespace tightkv {

inline constexpr float kDefaultSparseV = 1e-6f;
inline constexpr int   kMaxExactRows   = 4096; // sink and window, each
inline constexpr int   kMinMeanTokens = 16, kMaxMeanTokens = 4096;

inline constexpr std::string_view kAutoSpec = "turbo3t:sink=4:window=32:mean=256";

struct CacheSpec {
    FormatId k = FormatId::turbo4, v = FormatId::turbo4;
    FormatId first = FormatId::f16, last = FormatId::f16;
    int      n_first = 0, n_last = 0;
    int      sink = 0, window = 0;
    int      mean     = 0;
    float    sparse_v = kDefaultSparseV;

    std::string profile;              // file name; empty: none
    bool        self_profile = false; // profile=auto

    // Format of layer `index` among `n_layers` layers with a KV cache.
    FormatId k_of(int index, int n_layers) const { return boundary(index, n_layers, k); }
    FormatId v_of(int index, int n_layers) const { return boundary(index, n_layers, v); }

    // Canonical text; parses back to the same specification.
    std::string to_string() const;
    // Anything of this layer.
    bool compresses(int index, int n_layers) const {
        return k_of(index, n_layers) != FormatId::f16 || v_of(index, n_layers) != FormatId::f16;
    }
    // Exact rows are kept where anything is compressed.
    bool exact_rows(int index, int n_layers) const { return (sink > 0 || window > 0) && compresses(index, n_layers); }
    // What their table adds to a value of a cache of n_cells cells; 0 cells: leave it out.
    double exact_bytes_per_value(int index, int n_layers, int64_t n_cells) const;
    // Mean bits per value including scales, over all layers, for K and V of these head_dims; with the exact rows' table of a cache of
    // n_cells cells shared out over them.
    double bits_per_value(int n_layers, int head_dim_k, int head_dim_v, int64_t n_cells) const;

    bool operator==(const CacheSpec&) const = default;

private:
    FormatId boundary(int index, int n_layers, FormatId inner) const {
        return index < n_first ? first : index >= n_layers - n_last ? last : inner;
    }
};

// On failure `spec` is untouched and the message names the position (1 = first character) and the accepted words.
Status parse_cache_spec(std::string_view text, CacheSpec& spec);

} // namespace tightkv
