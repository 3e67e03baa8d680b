// The CPU kernels behind one table of function pointers per ISA level, chosen once at run time, forceable by name
// (TIGHTKV_ISA=scalar|avx2|avxvnni|avx512vnni|avx512|neon, or set_isa). Dispatch is per array: an entry works on a run of rows or tiles.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "codec/row.h"
#include "codec/tile.h"
#include "codec/transform.h"

namespace tightkv {

inline constexpr int kMaxDecodeRows  = 8;   // query rows one unpack serves in the decode kernel
inline constexpr int kMaxBatchedRows = 128; // query rows one expanded tile serves in the batched kernel

// kBits: a word of 64 bits per tile, bit t: the tile's token t is visible. What it says is a mask of 0 and -inf.
enum class MaskType : uint8_t { kNone, kF16, kF32, kBits };

// One operand of attention: the tiles of one KV head of one sequence, contiguous.
struct TileRun {
    const uint8_t* tiles = nullptr; // [n_tiles][tile_bytes]
    Format         format{};
    int            head_dim = 0;
};

// What a kernel saw of the tiles of V. twice: too much of a row's weights would have been rounded away (kLostMass in attend_common.h).
struct TileCounts {
    int64_t seen = 0, skipped = 0, twice = 0;
};

// Attention of `rows` query rows over the tokens [begin, end) of one KV head; begin is a multiple of kTileTokens.
struct AttendArgs {
    TileRun k, v;
    int     begin = 0, end = 0;
    int     rows = 0;
    // Queries in the domain of the keys (transformed unless K is f16), not yet scaled: [rows][k.head_dim].
    const float* q       = nullptr;
    float        scale   = 1.0f;
    float        softcap = 0.0f; // 0: none; else score = softcap * tanh(scale * q.k / softcap)
    // Added to scale * q.k before the soft cap, [rows]: what the keys' mean adds to all scores of a row, which only a soft cap can see.
    // Null without a soft cap or a mean.
    const float*       offset    = nullptr;
    MaskType           mask_type = MaskType::kNone;
    const void* const* mask      = nullptr; // [rows] -> value of token 0, added after slope; or word of tile 0
    ptrdiff_t          mask_step = 1;       // of bits: words from one tile to the next
    const float*       slope     = nullptr; // [rows] ALiBi factor of the mask value; null: 1
    // The values of a tile are skipped when all weights of all rows are below this part of the row's largest so far (they still count in
    // l).
    float       sparse_v = 0.0f; // 0: never
    TileCounts* v_tiles  = nullptr;
};

// Running softmax per row; o stays in the domain of the values: [rows][v.head_dim]. The kernel continues what is there.
struct AttendState {
    float* m; // [rows], start with -inf
    float* l; // [rows], start with 0
    float* o; // [rows][v.head_dim], start with 0
};

struct KernelTable {
    const char* name;
    // Write path: one row -> codes and scale; bit-exact across ISA levels. x: [head_dim].
    RowStatus (*encode)(const Format& f, const Transform& t, const float* x, CodedRow& row);
    // Up to kEncodeRows rows of one head_dim and format, the same bits: what one row waits for, the others use. t, x, row, status: [n].
    void (*encode_rows)(const Format& f, int n, const Transform* const* t, const float* const* x, CodedRow* const* row, RowStatus* status);
    // Back: codes and scale -> row, x: [head_dim]; bit-exact too.
    void (*decode)(const Format& f, const Transform& t, const CodedRow& row, float* x);
    // T x and T^-1 y in place, with the mean: [head_dim].
    void (*forward)(const Transform& t, float* x);
    void (*inverse)(const Transform& t, float* y);
    // Without: queries of keys and weighted sums of values (codec/transform.h).
    void (*query)(const Transform& t, float* q);
    void (*output)(const Transform& t, float* o);
    // Read path, up to kMaxDecodeRows rows: integer dot products on the packed codes, one unpack for all rows.
    // f16 operands are used as they lie, in f32. scratch: attend_scratch() floats, 64-byte aligned.
    void (*attend_decode)(const AttendArgs& a, const AttendState& s, float* scratch);
    // Read path, up to kMaxBatchedRows rows: every tile is expanded once and used by all rows, codes to int8, beside f16 to f32.
    void (*attend_batched)(const AttendArgs& a, const AttendState& s, float* scratch);
};

// Floats a kernel needs beside its arguments, for any ISA level. Packed codes: the expanded tile, the rows' int8 queries (two passes) and
// outputs with rows as lanes, scores and weights of two vectors of rows. Other operands: the tile in f32 and scores.
inline size_t attend_scratch(int head_dim_k, int head_dim_v) {
    const size_t dk = static_cast<size_t>(head_dim_k), dv = static_cast<size_t>(head_dim_v), rows = kMaxBatchedRows, lanes = 16;
    const size_t packed   = (kTileTokens * (dk + dv) + 2 * rows * dk) / sizeof(float) + rows * dv + lanes * (dk + 2 * kTileTokens * 3);
    const size_t expanded = kTileTokens * (dk + dv + rows);
    return packed > expanded ? packed : expanded;
}

const KernelTable& scalar_kernels();
// Only where the processor has them: available_kernels() says so.
const KernelTable& avx2_kernels();
const KernelTable& avxvnni_kernels();
const KernelTable& avx512vnni_kernels();
const KernelTable& avx512_kernels();
const KernelTable& neon_kernels();

// The levels this build and this processor have, weakest first.
std::span<const KernelTable* const> available_kernels();
// The chosen one: best available, or what TIGHTKV_ISA names. Thread-safe.
const KernelTable& kernels();
// Forces a level; the error names the levels there are. Not while other threads are inside the library.
Status set_isa(std::string_view name);
// What TIGHTKV_ISA asked for and could not have, as one sentence; empty when all is well.
std::string isa_complaint();

} // namespace tightkv
