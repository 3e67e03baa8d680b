// A calibration profile: what `tightkv calibrate` learnt about the keys and values of one model, as a file.
//
// Little endian; strings are a length of 4 bytes and that many bytes of printable UTF-8:
//   0   8  magic "tkvcalib"
//   8   4  version of this layout
//   12  4  n_layers
//   16     strings: architecture, made_from
//   then, per layer: block, head_dim_k, head_dim_v, n_kv_heads (4 bytes each), norm (8), strings: format of K, of V ("": as specified);
//          per KV head of K, then of V: 1 byte (1: mean, 2: matrices), then f32: mean [d], T [d][d], T^-1 [d][d]
//   last 8 FNV-1a 64 of everything before
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "cache/cache_spec.h"
#include "codec/format.h"
#include "codec/tile.h"
#include "codec/transform.h"

namespace tightkv {

inline constexpr int kProfileVersion = 1;

struct HeadProfile {
    std::vector<float> mean;            // [d], or empty for none
    std::vector<float> matrix, inverse; // T and T^-1, [d][d], row-major; both empty: the Hadamard transform

    bool operator==(const HeadProfile&) const = default;
};

struct LayerProfile {
    int                      block      = 0; // of the model: the i in blk.<i>.attn_norm.weight and cache_k_l<i>
    int                      head_dim_k = 0, head_dim_v = 0;
    uint64_t                 norm = 0;           // norm_hash() of the block's attn_norm.weight; 0: the model has none
    std::optional<FormatId>  k_format, v_format; // chosen within a budget of bits; none: as the specification says
    std::vector<HeadProfile> k, v;               // per KV head

    int                             head_dim(Operand op) const { return op == Operand::K ? head_dim_k : head_dim_v; }
    const std::vector<HeadProfile>& heads(Operand op) const { return op == Operand::K ? k : v; }
    const std::optional<FormatId>&  format(Operand op) const { return op == Operand::K ? k_format : v_format; }
    bool                            operator==(const LayerProfile&) const = default;
};

struct Profile {
    std::string               architecture;
    std::string               made_from; // text, tokens, positions, version: for people
    std::vector<LayerProfile> layers;    // those with a KV cache, in the model's order

    // 16 hex digits over the blocks and their norms: the same for every quantisation of a model, which leaves norms in F32.
    std::string fingerprint() const;

    // Everything is checked before `out` is touched; the message is one line.
    static Status        read(std::span<const uint8_t> bytes, Profile& out);
    static Status        load(const std::string& path, Profile& out);
    std::vector<uint8_t> write() const;
    // The file has either its old content or all of the new.
    Status save(const std::string& path) const;

    // Can it be used for this operand of a layer with rows of n_embd values a token? head_dim 0: not known yet.
    static Status fits(const LayerProfile& layer, Operand op, int head_dim, int64_t n_embd);

    const LayerProfile* layer_of_block(int block) const; // null where there is none
    // One per KV head. A mean of values is worth something only beside exact sink rows, and does harm without: with_mean leaves it out.
    std::vector<std::shared_ptr<const Transform>> transforms(const LayerProfile& layer, Operand op, bool with_mean) const;

    bool operator==(const Profile&) const = default;
};

// Format of layer `index` of `n_layers` with a KV cache: what the specification says of boundary layers, then what the profile chose (null:
// there is none), then what the specification says.
FormatId chosen_format(const CacheSpec& spec, const LayerProfile* layer, Operand op, int index, int n_layers);
// CacheSpec::bits_per_value with the formats that the profile chose.
double bits_per_value(const CacheSpec& spec, const Profile& profile, int64_t n_cells);

// Identity of one block: name and values of its attn_norm.weight, [n_embd] f32. Never 0.
uint64_t norm_hash(std::string_view name, std::span<const uint8_t> values);
// "blk.7.attn_norm.weight" of block 7.
std::string norm_name(int block);
// The fingerprint of blocks with these norms, in order.
std::string fingerprint_of(std::span<const std::pair<int, uint64_t>> blocks);

} // namespace tightkv
