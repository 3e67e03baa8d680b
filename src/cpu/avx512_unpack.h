// Unpacking on 512 bits (VBMI): eight vectors of codes -> eight vectors of table bytes. Used by avx512_read.cpp alone; internal linkage.
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "cpu/attend_common.h"

namespace tightkv {

namespace {

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }

// VPERMB takes six index bits; the tables repeat, so what stands above the code does not matter. 8 bit: the offset, which XOR adds.
struct LevelTable {
    __m512i levels;
};
struct TrellisTable {
    __m512i unit[4];   // by unit; V at 3 bits for VPSHUFB, one table per four dims
    __m512i second;    // 4 bit
    __m512i own[3];    // V at 3 bits, by plane: the positions of its unit
    __m512i before[3]; // and those of the predecessors
};
template <class C> using Table = std::conditional_t<C::trellis, TrellisTable, LevelTable>;

template <class C> Table<C> make_table(Operand op, int offset) { // offset: 0 or 128
    alignas(64) int8_t bytes[64];
    const auto         vector = [&] { return _mm512_load_si512(bytes); };
    Table<C>           t{};
    if constexpr (C::bits == 8) {
        t.levels = _mm512_set1_epi8(static_cast<char>(offset));
    } else if constexpr (!C::trellis) {
        const Codebook& book = codebook(C::bits);
        for (int i = 0; i < 64; i++) bytes[i] = static_cast<int8_t>(book.level[i % book.n] + offset);
        t.levels = vector();
    } else {
        const bool lanes = op == Operand::V && C::bits == 3;
        for (int u = 0; u < 4; u++) {
            for (int x = 0; x < 4; x++) trellis_table(C::bits, unit_phase(C::bits, u) + (lanes ? x : 0), offset, bytes + 16 * x);
            t.unit[u] = vector();
        }
        for (int i = 0; i < 64; i++) bytes[i] = trellis(C::bits).second[static_cast<size_t>(i % 8)];
        t.second = vector();
        for (int p = 0; p < 3; p++) {
            const auto all_but = [&](int phase) { // 0x11 at the free position of a phase
                for (int i = 0; i < 64; i++) bytes[i] = static_cast<int8_t>(~(0x11 << (phase + i / 16) % 4));
                return vector();
            };
            t.own[p] = all_but(p), t.before[p] = all_but(p + 3);
        }
    }
    return t;
}

// ---- levels: vector by vector. p: first of the group's planes, 64 bytes each. use(i, v_i) for i = 0 … 7

template <int Bits, class Use> [[gnu::always_inline]] inline void unpack(const uint8_t* p, __m512i table, Use use) {
    const auto lookup = [&](__m512i index) { return _mm512_permutexvar_epi8(index, table); };
    if constexpr (Bits == 8) {
        for (int i = 0; i < 8; i++) use(i, _mm512_xor_si512(load(p + 64 * i), table));
    } else if constexpr (Bits == 4) {
        for (int i = 0; i < 4; i++) {
            const __m512i x = load(p + 64 * i);
            use(2 * i, lookup(x));
            use(2 * i + 1, lookup(_mm512_srli_epi16(x, 4)));
        }
    } else if constexpr (Bits == 3) {
        const __m512i A = load(p), B = load(p + 64), C = load(p + 128);
        use(0, lookup(A));
        use(1, lookup(_mm512_srli_epi16(A, 4)));
        use(2, lookup(B));
        use(3, lookup(_mm512_srli_epi16(B, 4)));
        use(4, lookup(C));
        use(5, lookup(_mm512_srli_epi16(C, 4)));
        // bits 3 and 7 of A, B, C -> bits 0, 1, 2 of each nibble. 0xca: where the mask is set take the second, else the third
        __m512i s = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x44), _mm512_srli_epi16(C, 1), _mm512_srli_epi16(B, 2), 0xca);
        s         = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x66), s, _mm512_srli_epi16(A, 3), 0xca);
        use(6, lookup(s));
        use(7, lookup(_mm512_srli_epi16(s, 4)));
    } else {
        for (int i = 0; i < 2; i++) {
            const __m512i x = load(p + 64 * i);
            use(4 * i, lookup(x));
            use(4 * i + 1, lookup(_mm512_srli_epi16(x, 2)));
            use(4 * i + 2, lookup(_mm512_srli_epi16(x, 4)));
            use(4 * i + 3, lookup(_mm512_srli_epi16(x, 6)));
        }
    }
}

// ---- trellis: units of two nibbles, layout in codec/tile.h

// Truth tables of VPTERNLOG over its operands (a, b, c).
inline constexpr int kXor3 = 0x96, kAndXor = 0x78 /* a ^ (b & c) */, kPick = 0xca /* a ? b : c */;

inline __m512i and_xor(__m512i x, __m512i y, __m512i mask) { return _mm512_ternarylogic_epi32(x, y, mask, kAndXor); } // x ^ (y & mask)
inline __m512i pick(int mask, __m512i set, __m512i clear) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), set, clear, kPick);
}
inline __m512i xor3(__m512i x, __m512i y, __m512i z) { return _mm512_ternarylogic_epi32(x, y, z, kXor3); }
inline __m512i shr(__m512i x, int by) { return _mm512_srli_epi16(x, static_cast<unsigned>(by)); }
inline __m512i byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }

// The last unit of a dim group of K, as the predecessor of the next group: 3 bit that unit, else the plane with it.
template <int Bits> [[gnu::always_inline]] inline __m512i last_unit(const uint8_t* p) {
    if constexpr (Bits == 3) return _mm512_and_si512(pick(0x11, load(p), pick(0x22, load(p + 64), load(p + 128))), byte(0x77));
    else return load(p + (Bits - 1) * 64);
}

// One dim group of K. last: last_unit of the group before, becomes that of this group.
template <int Bits, class Use>
[[gnu::always_inline]] inline void unpack_k(const uint8_t* p, __m512i& last, const TrellisTable& t, Use use) {
    const auto lookup = [](__m512i index, __m512i table) { return _mm512_permutexvar_epi8(index, table); };
    __m512i    x[4];
    if constexpr (Bits == 4) {
        for (int u = 0; u < 4; u++) {
            x[u] = load(p + 64 * u);
            use(u, _mm512_add_epi8(lookup(x[u], t.unit[0]), lookup(last, t.second)));
            use(u + 4, _mm512_add_epi8(lookup(shr(x[u], 4), t.unit[0]), lookup(shr(last, 4), t.second)));
            last = x[u];
        }
        return;
    } else if constexpr (Bits == 3) {
        const __m512i A = load(p), B = load(p + 64), C = load(p + 128);
        const __m512i a = _mm512_and_si512(A, byte(0xee)), b = _mm512_and_si512(B, byte(0xdd)), c = _mm512_and_si512(C, byte(0xbb));
        x[0] = _mm512_xor_si512(a, last);
        x[1] = _mm512_xor_si512(a, b);
        x[2] = _mm512_xor_si512(b, c);
        last = xor3(xor3(A, B, C), x[1], c);
        x[3] = _mm512_xor_si512(last, c);
    } else {
        // An even unit has its index rotated by two: own bits at 0-1, the predecessor's at 2-3, which is where they lie.
        for (int i = 0; i < 2; i++) {
            const __m512i now = load(p + 64 * i);
            x[2 * i]          = and_xor(_mm512_and_si512(now, byte(0x33)), last, byte(0xdd));
            x[2 * i + 1]      = and_xor(now, last, byte(0x44));
            last              = now;
        }
    }
    for (int u = 0; u < 4; u++) {
        use(u, lookup(x[u], t.unit[u]));
        use(u + 4, lookup(shr(x[u], 4), t.unit[u]));
    }
}

// 32 tokens of a dim group of V. before: the same of the group with the predecessors of dims 0-3.
template <int Bits, class Use>
[[gnu::always_inline]] inline void unpack_v(const uint8_t* p, const uint8_t* before, const TrellisTable& t, Use use) {
    const auto lookup = [](__m512i index, __m512i table) { return _mm512_permutexvar_epi8(index, table); };
    const auto four   = [&](__m512i x, int plane) { return _mm512_alignr_epi32(x, load(before + 64 * plane), 12); }; // four dims before
    if constexpr (Bits == 4) {
        for (int u = 0; u < 4; u++) {
            const __m512i x = load(p + 64 * u), last = four(x, u);
            use(2 * u, _mm512_add_epi8(lookup(x, t.unit[0]), lookup(last, t.second)));
            use(2 * u + 1, _mm512_add_epi8(lookup(shr(x, 4), t.unit[0]), lookup(shr(last, 4), t.second)));
        }
    } else if constexpr (Bits == 3) {
        __m512i x[4];
        for (int i = 0; i < 3; i++) {
            const __m512i now = load(p + 64 * i), last = four(now, i);
            x[i]            = and_xor(_mm512_and_si512(last, t.before[i]), now, t.own[i]);
            const __m512i e = xor3(now, last, x[i]); // the positions that belong to unit 3, and to its predecessor
            x[3]            = i == 0 ? e : _mm512_xor_si512(x[3], e);
        }
        for (int u = 0; u < 4; u++) {
            use(2 * u, _mm512_shuffle_epi8(t.unit[u], _mm512_and_si512(x[u], byte(15))));
            use(2 * u + 1, _mm512_shuffle_epi8(t.unit[u], _mm512_and_si512(shr(x[u], 4), byte(15))));
        }
    } else {
        for (int i = 0; i < 2; i++) {
            const __m512i now = load(p + 64 * i), last = four(now, i);
            const __m512i q    = and_xor(now, _mm512_alignr_epi32(now, load(before + 64 * i), 8), byte(0x55));
            const __m512i even = pick(0x33, q, _mm512_slli_epi16(last, 2)), odd = pick(0xcc, q, shr(last, 2));
            use(4 * i, lookup(even, t.unit[0]));
            use(4 * i + 1, lookup(shr(even, 4), t.unit[0]));
            use(4 * i + 2, lookup(odd, t.unit[1]));
            use(4 * i + 3, lookup(shr(odd, 4), t.unit[1]));
        }
    }
}

// ---- what the kernels call: several parts of a tile side by side, so that they share what they are multiplied with

template <int Parts> using Unpacked = __m512i[Parts][8];

// The dim groups of `Parts` times 16 tokens of K, which lie `apart` bytes from each other: use(g, v) with the vectors of all parts.
template <class C, int Parts, class Use>
[[gnu::always_inline]] inline void walk_k_parts(const uint8_t* p, size_t apart, int groups, const Table<C>& t, Use use) {
    constexpr int kGroup = C::bits * 64;
    __m512i       last[Parts];
    if constexpr (C::trellis)
        for (int part = 0; part < Parts; part++) last[part] = last_unit<C::bits>(p + part * apart);
    for (int n = C::trellis; n < groups + C::trellis; n++) { // trellis: group 0 last, as it needs the last one
        const int       g = n < groups ? n : 0;
        Unpacked<Parts> v;
        for (int part = 0; part < Parts; part++) {
            const uint8_t* const at  = p + part * apart + g * kGroup;
            const auto           put = [&](int i, __m512i x) __attribute__((always_inline)) { v[part][i] = x; };
            fetch_next<C, kGroup>(p + part * apart + (n - C::trellis) * kGroup, groups * 32);
            if constexpr (C::trellis) {
                if (g == 0)
                    last[part] = pick(0x0f, shr(last[part], 4), _mm512_slli_epi16(last[part], 4)); // a segment's halves are the nibbles
                unpack_k<C::bits>(at, last[part], t, put);
            } else unpack<C::bits>(at, t.levels, put);
        }
        use(g, v);
    }
}

// The tokens of the dim groups g, g + 1, … of V, of `groups`: use(s, v) with the vectors of the 32 tokens s of `Parts` groups.
template <class C, int Parts, class Use>
[[gnu::always_inline]] inline void walk_v_parts(const uint8_t* tile, int g, int groups, const Table<C>& t, Use use) {
    constexpr int kHalf = C::bits * 64;
    for (int s = 0; s < 2; s++) {
        Unpacked<Parts> v;
        for (int part = 0; part < Parts; part++) {
            const uint8_t *p      = tile + static_cast<size_t>(2 * (g + part) + s) * kHalf,
                          *before = tile + static_cast<size_t>(2 * part_before(g + part, groups, 1) + s) * kHalf;
            const auto put        = [&](int i, __m512i x) __attribute__((always_inline)) { v[part][i] = x; };
            fetch_next<C, kHalf>(p, groups * 16);
            if constexpr (C::trellis) unpack_v<C::bits>(p, before, t, put);
            else unpack<C::bits>(p, t.levels, put);
        }
        use(s, v);
    }
}

// One part, vector by vector: use(g, i, v_i), use(s, i, v_i).
template <class C, class Use> [[gnu::always_inline]] inline void walk_k(const uint8_t* p, int groups, const Table<C>& t, Use use) {
    walk_k_parts<C, 1>(
        p, 0, groups, t, [&](int g, const Unpacked<1>& v) __attribute__((always_inline)) {
            for (int i = 0; i < 8; i++) use(g, i, v[0][i]);
        });
}
template <class C, class Use>
[[gnu::always_inline]] inline void walk_v(const uint8_t* tile, int g, int groups, const Table<C>& t, Use use) {
    walk_v_parts<C, 1>(
        tile, g, groups, t, [&](int s, const Unpacked<1>& v) __attribute__((always_inline)) {
            for (int i = 0; i < 8; i++) use(s, i, v[0][i]);
        });
}

} // namespace
} // namespace tightkv
