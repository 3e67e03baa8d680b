// Rows into tiles and back: a lossless permutation of the canonical codes.
#include "codec/tile.h"

#include <cstring>

namespace tightkv {

namespace {

constexpr int kPlane = 64; // bytes

// Eight codes (one per vector) at one byte position <-> the `bits` plane bytes at that position. W is a byte or a dword of four
// neighbouring positions: no operation crosses a byte.
template <class W> constexpr W each_byte(uint8_t b) { return static_cast<W>(static_cast<W>(~W{0}) / 0xff * b); }

template <class W> void pack8(int bits, const W v[8], W plane[8]) {
    const auto join = [](unsigned lo, unsigned hi, int by) { return static_cast<W>(lo | hi << by); };
    if (bits == 8) {
        std::memcpy(plane, v, sizeof(W) * 8);
    } else if (bits == 4) {
        for (int p = 0; p < 4; p++) plane[p] = join(v[2 * p], v[2 * p + 1], 4);
    } else if (bits == 2) {
        for (int p = 0; p < 2; p++) plane[p] = join(join(v[4 * p], v[4 * p + 1], 2), join(v[4 * p + 2], v[4 * p + 3], 2), 4);
    } else {
        const W one = each_byte<W>(1);
        for (int p = 0; p < 3; p++) {
            const unsigned spare = join((v[6] >> p) & one, (v[7] >> p) & one, 4);
            plane[p]             = join(join(v[2 * p], v[2 * p + 1], 4), spare, 3);
        }
    }
}

template <class W> void unpack8(int bits, const W plane[8], W v[8]) {
    const auto field = [](W x, int at, uint8_t mask) { return static_cast<W>((x >> at) & each_byte<W>(mask)); };
    if (bits == 8) {
        std::memcpy(v, plane, sizeof(W) * 8);
    } else if (bits == 4) {
        for (int i = 0; i < 8; i++) v[i] = field(plane[i / 2], 4 * (i % 2), 15);
    } else if (bits == 2) {
        for (int i = 0; i < 8; i++) v[i] = field(plane[i / 4], 2 * (i % 4), 3);
    } else {
        for (int i = 0; i < 6; i++) v[i] = field(plane[i / 2], 4 * (i % 2), 7);
        for (int i = 6; i < 8; i++) {
            const int at = i == 6 ? 3 : 7;
            v[i]         = static_cast<W>(field(plane[0], at, 1) | field(plane[1], at, 1) << 1 | field(plane[2], at, 1) << 2);
        }
    }
}

// Bits [from, from + width of mask) of 16 codes into the 16 dwords of a plane, at bit `to` of each.
void put_field(uint8_t* plane, const uint8_t* codes, int from, uint32_t mask, int to) {
    uint32_t w[16];
    std::memcpy(w, plane, sizeof w);
    for (int x = 0; x < 16; x++) w[x] = (w[x] & ~(mask << to)) | ((codes[x] >> from & mask) << to);
    std::memcpy(plane, w, sizeof w);
}

// First byte of dim group g for K (dword of the token) and V (byte of the token in dim 0 of the group).
size_t k_offset(int bits, int head_dim, int token, int g) {
    return (size_t(token / 16) * (head_dim / 32) + g) * bits * kPlane + (token % 16) * 4;
}
size_t v_offset(int bits, int token, int g) { return (size_t(g) * 2 + token / 32) * bits * kPlane + token % 4; }

} // namespace

void tile_put(const Format& f, Operand op, int head_dim, uint8_t* tile, int token, const CodedRow& row) {
    tile_scales(f, head_dim, tile)[token] = row.scale;
    if (op == Operand::K) {
        for (int g = 0; g < head_dim / 32; g++) {
            uint8_t* at = tile + k_offset(f.bits, head_dim, token, g);
            uint32_t v[8], plane[8];
            std::memcpy(v, row.codes + 32 * g, sizeof v);
            pack8(f.bits, v, plane);
            for (int p = 0; p < f.bits; p++) std::memcpy(at + p * kPlane, &plane[p], 4);
        }
        return;
    }
    // A token of V is one byte of every dword and one field of it: or, for the last two of eight vectors at 3 bits, a bit in three planes.
    const int i = token % 32 / 4; // vector of the token
    for (int g = 0; g < head_dim / 16; g++) {
        uint8_t* const       at    = tile + v_offset(f.bits, token, g) - token % 4;
        const uint8_t* const codes = row.codes + 16 * g;
        const int            byte  = 8 * (token % 4);
        if (f.bits == 8) put_field(at + i * kPlane, codes, 0, 0xff, byte);
        else if (f.bits == 4) put_field(at + i / 2 * kPlane, codes, 0, 15, byte + 4 * (i % 2));
        else if (f.bits == 2) put_field(at + i / 4 * kPlane, codes, 0, 3, byte + 2 * (i % 4));
        else if (i < 6) put_field(at + i / 2 * kPlane, codes, 0, 7, byte + 4 * (i % 2));
        else
            for (int p = 0; p < 3; p++) put_field(at + p * kPlane, codes, p, 1, byte + (i == 6 ? 3 : 7));
    }
}

void tile_get(const Format& f, Operand op, int head_dim, const uint8_t* tile, int token, CodedRow& row) {
    row.scale = tile_scales(f, head_dim, tile)[token];
    if (op == Operand::K) {
        for (int g = 0; g < head_dim / 32; g++) {
            const uint8_t* at = tile + k_offset(f.bits, head_dim, token, g);
            uint32_t       v[8], plane[8];
            for (int p = 0; p < f.bits; p++) std::memcpy(&plane[p], at + p * kPlane, 4);
            unpack8(f.bits, plane, v);
            std::memcpy(row.codes + 32 * g, v, sizeof v);
        }
        return;
    }
    const int i = token % 32 / 4;
    for (int g = 0; g < head_dim / 16; g++) {
        const uint8_t* at = tile + v_offset(f.bits, token, g);
        for (int x = 0; x < 16; x++) {
            uint8_t v[8], plane[8];
            for (int p = 0; p < f.bits; p++) plane[p] = at[p * kPlane + 4 * x];
            unpack8(f.bits, plane, v);
            row.codes[16 * g + x] = v[i];
        }
    }
}

} // namespace tightkv
