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

// Trellis formats: 2n of a code rotated left by the phase inside the nibble, and back. Bits above the nibbles of W's bytes are zero.
template <class W> W to_phase(W n, int f) {
    const W two_n = static_cast<W>(n << 1);
    return static_cast<W>((two_n << f | two_n >> (4 - f)) & each_byte<W>(15));
}
template <class W> W from_phase(W x, int f) { return static_cast<W>((x >> f | x << (4 - f)) >> 1 & each_byte<W>(7)); }

// Eight codes of K at one byte position <-> plane bytes.
template <class W> void pack_units(int bits, const W v[8], W plane[8]) {
    W unit[4];
    for (int u = 0; u < 4; u++) {
        const W low = bits == 3 ? to_phase(v[u], u) : v[u], high = bits == 3 ? to_phase(v[u + 4], u) : v[u + 4];
        unit[u] = static_cast<W>(low | high << 4);
    }
    if (bits == 4) std::memcpy(plane, unit, sizeof unit);
    else if (bits == 2)
        for (int p = 0; p < 2; p++) plane[p] = static_cast<W>(unit[2 * p] | unit[2 * p + 1] << 2);
    else
        for (int p = 0; p < 3; p++) plane[p] = static_cast<W>(unit[p] | (unit[3] & each_byte<W>(static_cast<uint8_t>(0x11 << p))));
}

template <class W> void unpack_units(int bits, const W plane[8], W v[8]) {
    W unit[4] = {};
    for (int u = 0; u < 4; u++) {
        if (bits == 4) unit[u] = plane[u];
        else if (bits == 2) unit[u] = static_cast<W>(plane[u / 2] >> 2 * (u % 2) & each_byte<W>(0x33));
        else if (u < 3) {
            const W free = each_byte<W>(static_cast<uint8_t>(0x11 << u));
            unit[u]      = static_cast<W>(plane[u] & ~free);
            unit[3]      = static_cast<W>(unit[3] | (plane[u] & free));
        }
    }
    for (int i = 0; i < 8; i++) {
        const W x = static_cast<W>(unit[i % 4] >> i / 4 * 4 & each_byte<W>(15));
        v[i]      = bits == 3 ? from_phase(x, i % 4) : x;
    }
}

// The 16 codes of a token of V at 3 bits: at = its byte of dword 0, i = its vector.
void put_phased(uint8_t* at, int i, const uint8_t* codes) {
    const int u = i / 2, high = 4 * (i % 2);
    for (int x = 0; x < 16; x++) {
        const int      f = (u + x / 4) % 4;
        const unsigned n = to_phase<uint8_t>(codes[x], f);
        for (int p = 0; p < 3; p++) {
            if (u < 3 && p != u) continue;
            const unsigned mask = u < 3 ? 15u & ~(1u << f) : 1u << (p + x / 4) % 4; // the positions this plane has of the code
            uint8_t&       byte = at[p * kPlane + 4 * x];
            byte                = static_cast<uint8_t>((byte & ~(mask << high)) | (n & mask) << high);
        }
    }
}

unsigned get_phased(const uint8_t* at, int i, int x) {
    const int u = i / 2, high = 4 * (i % 2), f = (u + x / 4) % 4;
    unsigned  n = 0;
    for (int p = 0; p < 3; p++) {
        const unsigned nibble = at[p * kPlane + 4 * x] >> high & 15u;
        if (u == p) n = nibble & ~(1u << f);
        else if (u == 3) n |= nibble & 1u << (p + x / 4) % 4;
    }
    return from_phase<uint8_t>(static_cast<uint8_t>(n), f);
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
    const bool units                      = f.kind == FormatKind::Trellis;
    tile_scales(f, head_dim, tile)[token] = row.scale;
    if (op == Operand::K) {
        for (int g = 0; g < head_dim / 32; g++) {
            uint8_t* at = tile + k_offset(f.bits, head_dim, token, g);
            uint32_t v[8], plane[8] = {};
            std::memcpy(v, row.codes + 32 * g, sizeof v);
            units ? pack_units(f.bits, v, plane) : pack8(f.bits, v, plane);
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
        else if (f.bits == 2 && units) put_field(at + i / 4 * kPlane, codes, 0, 3, byte + 4 * (i % 2) + i / 2 % 2 * 2);
        else if (f.bits == 2) put_field(at + i / 4 * kPlane, codes, 0, 3, byte + 2 * (i % 4));
        else if (units) put_phased(at + token % 4, i, codes);
        else if (i < 6) put_field(at + i / 2 * kPlane, codes, 0, 7, byte + 4 * (i % 2));
        else
            for (int p = 0; p < 3; p++) put_field(at + p * kPlane, codes, p, 1, byte + (i == 6 ? 3 : 7));
    }
}

void tile_get(const Format& f, Operand op, int head_dim, const uint8_t* tile, int token, CodedRow& row) {
    const bool units = f.kind == FormatKind::Trellis;
    row.scale        = tile_scales(f, head_dim, tile)[token];
    if (op == Operand::K) {
        for (int g = 0; g < head_dim / 32; g++) {
            const uint8_t* at = tile + k_offset(f.bits, head_dim, token, g);
            uint32_t       v[8], plane[8] = {};
            for (int p = 0; p < f.bits; p++) std::memcpy(&plane[p], at + p * kPlane, 4);
            units ? unpack_units(f.bits, plane, v) : unpack8(f.bits, plane, v);
            std::memcpy(row.codes + 32 * g, v, sizeof v);
        }
        return;
    }
    const int i = token % 32 / 4;
    for (int g = 0; g < head_dim / 16; g++) {
        const uint8_t* at = tile + v_offset(f.bits, token, g);
        for (int x = 0; x < 16; x++) {
            if (units && f.bits < 4) {
                row.codes[16 * g + x] = static_cast<uint8_t>(f.bits == 3 ? get_phased(at, i, x)
                                                                         : at[i / 4 * kPlane + 4 * x] >> (4 * (i % 2) + i / 2 % 2 * 2) & 3);
                continue;
            }
            uint8_t v[8], plane[8] = {};
            for (int p = 0; p < f.bits; p++) plane[p] = at[p * kPlane + 4 * x];
            unpack8(f.bits, plane, v);
            row.codes[16 * g + x] = v[i];
        }
    }
}

} // namespace tightkv
