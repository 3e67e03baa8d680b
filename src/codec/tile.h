// How rows of one KV head lie in memory: tiles of 64 tokens, one layout for every ISA.
//
// A vector is 64 bytes = 16 dwords of 4 bytes. K: dword t = token t of a block of 16 tokens, vector i holds dims 4i..4i+3.
// V: dword x = dim x of a group of 16 dims, vector i holds tokens 4i..4i+3. So every int32 lane of a dot product is an output.
// Eight vectors (32 dims of K, 32 tokens of V) pack into `bits` planes of 64 bytes; per byte position, v_i the code of vector i:
//   4 bit: plane p = v_2p | v_2p+1 << 4
//   3 bit: planes A = v0 | v1<<4, B = v2 | v3<<4, C = v4 | v5<<4; bit 3 of A, B, C = bits 0, 1, 2 of v6, bit 7 those of v7
//   2 bit: plane p = v_4p | v_4p+1 << 2 | v_4p+2 << 4 | v_4p+3 << 6
//   8 bit: plane p = v_p
// Trellis formats (trellis.h) pack the eight vectors as four units of two nibbles, so that the predecessors of a unit are one unit, too:
//   K: unit u = v_u | v_u+4 << 4, V: unit u = v_2u | v_2u+1 << 4
//   4 bit: plane u = unit u
//   2 bit: plane p = unit 2p | unit 2p+1 << 2
//   3 bit: a code n has a phase f, K: f = u, V: f = (u + dword/4) mod 4. Its nibble is 2n rotated left by f: bit b at (b + 1 + f) mod 4,
//   and
//          position f is free. Planes 0, 1, 2 = units 0, 1, 2; of unit 3 position i is in the plane where i is free. The predecessor has
//          phase f - 1, its bit b thus position (b + f) mod 4: (nibble XOR predecessor's nibble) = (2n XOR p) rotated left by f.
// Predecessors. K, same byte: unit u - 1; of unit 0: unit 3 of the group before, and in the first group unit 3 of the last one with its
// nibbles swapped. V, same nibble: four dwords before (same plane and token group); of dwords 0-3: dwords 12-15 two dim groups before, for
// dim group 0 of the last one, for 1 of the last but one.
// Groups: K [token block of 16: 4][dim group of 32: d/32], V [dim group of 16: d/16][token group of 32: 2], each bits*64 bytes.
// After the codes: fp16 scale[64]. f16 tiles are [64 tokens][d] and nothing else.
// Any token of any tile can be rewritten; two threads must not write tokens of one V tile at the same time (bytes mix tokens).
#pragma once
#include <cstddef>
#include <cstdint>

#include "codec/row.h"

namespace tightkv {

inline constexpr int kTileTokens = 64;

enum class Operand : uint8_t { K, V };

inline size_t tile_code_bytes(const Format& f, int head_dim) { return size_t(kTileTokens) * head_dim * f.bits / 8; }
inline size_t tile_bytes(const Format& f, int head_dim) {
    return tile_code_bytes(f, head_dim) + (f.transformed() ? kTileTokens * sizeof(uint16_t) : 0);
}
inline uint16_t* tile_scales(const Format& f, int head_dim, uint8_t* tile) {
    return reinterpret_cast<uint16_t*>(tile + tile_code_bytes(f, head_dim));
}
inline const uint16_t* tile_scales(const Format& f, int head_dim, const uint8_t* tile) {
    return reinterpret_cast<const uint16_t*>(tile + tile_code_bytes(f, head_dim));
}

// Formats with a transform. token in [0, 64).
void tile_put(const Format& f, Operand op, int head_dim, uint8_t* tile, int token, const CodedRow& row);
void tile_get(const Format& f, Operand op, int head_dim, const uint8_t* tile, int token, CodedRow& row);

} // namespace tightkv
