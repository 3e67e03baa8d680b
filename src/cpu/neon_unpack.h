// Unpacking on neon: eight vectors of codes -> eight vectors of table bytes, handed on four at a time. Used by neon_read.cpp alone;
// internal linkage.
#pragma once
#include <arm_neon.h>

#include <type_traits>

#include "cpu/attend_common.h"

namespace tightkv {

namespace {

// TBL takes the whole byte for its index; the tables repeat, so inside the low nibble what stands beside the code does not matter.
struct LevelTable {
    uint8x16_t low;  // index in the low bits of a nibble; 8 bit: the offset, which XOR adds
    uint8x16_t high; // 2 bit only: index in bits 2-3 of a nibble
};
// V is read in quarters of a dim group. At 3 bits they differ in their phases: what serves unit u of quarter q is at [u + q].
struct TrellisTable {
    uint8x16_t unit[7];
    uint8x16_t second; // 4 bit
};
template <class C> using Table = std::conditional_t<C::trellis, TrellisTable, LevelTable>;

template <class C> Table<C> make_table(int offset) { // offset: 0 or 128
    int8_t     bytes[16];
    const auto vector = [&] { return vreinterpretq_u8_s8(vld1q_s8(bytes)); };
    Table<C>   t{};
    if constexpr (C::bits == 8) {
        t.low = vdupq_n_u8(static_cast<uint8_t>(offset));
    } else if constexpr (!C::trellis) {
        const Codebook& book = codebook(C::bits);
        for (int i = 0; i < 16; i++) bytes[i] = static_cast<int8_t>(book.level[i % book.n] + offset);
        t.low = vector();
        for (int i = 0; i < 16; i++) bytes[i] = static_cast<int8_t>(book.level[(i >> 2) % book.n] + offset);
        t.high = vector();
    } else {
        for (int i = 0; i < 7; i++) {
            trellis_table(C::bits, unit_phase(C::bits, i), offset, bytes);
            t.unit[i] = vector();
        }
        for (int i = 0; i < 16; i++) bytes[i] = trellis(C::bits).second[static_cast<size_t>(i % 8)];
        t.second = vector();
    }
    return t;
}

inline uint8x16_t byte(int x) { return vdupq_n_u8(static_cast<uint8_t>(x)); }
inline uint8x16_t low_nibble(uint8x16_t x) { return vandq_u8(x, byte(15)); }
inline uint8x16_t high_nibble(uint8x16_t x) { return vshrq_n_u8(x, 4); }

// ---- levels. p: this quarter (16 bytes) of the first plane; planes are 64 bytes apart. use(i, v_i, v_i+1, v_i+2, v_i+3) for i = 0, 4.

template <int Bits, class Use> [[gnu::always_inline]] inline void unpack(const uint8_t* p, const LevelTable& t, Use use) {
    const auto lookup = [](uint8x16_t table, uint8x16_t index) { return vqtbl1q_u8(table, index); };
    if constexpr (Bits == 8) {
        const auto level = [&](int i) { return veorq_u8(vld1q_u8(p + 64 * i), t.low); };
        for (int i = 0; i < 8; i += 4) use(i, level(i), level(i + 1), level(i + 2), level(i + 3));
    } else if constexpr (Bits == 4) {
        for (int i = 0; i < 8; i += 4) {
            const uint8x16_t a = vld1q_u8(p + 32 * i), b = vld1q_u8(p + 32 * i + 64);
            use(i, lookup(t.low, low_nibble(a)), lookup(t.low, high_nibble(a)), lookup(t.low, low_nibble(b)),
                lookup(t.low, high_nibble(b)));
        }
    } else if constexpr (Bits == 3) {
        const uint8x16_t a = vld1q_u8(p), b = vld1q_u8(p + 64), c = vld1q_u8(p + 128);
        use(0, lookup(t.low, low_nibble(a)), lookup(t.low, high_nibble(a)), lookup(t.low, low_nibble(b)), lookup(t.low, high_nibble(b)));
        // bits 3 and 7 of a, b, c -> bits 0, 1, 2 of each nibble
        uint8x16_t s = vbslq_u8(byte(0x44), vshrq_n_u8(c, 1), vshrq_n_u8(b, 2));
        s            = vbslq_u8(byte(0x66), s, vshrq_n_u8(a, 3));
        use(4, lookup(t.low, low_nibble(c)), lookup(t.low, high_nibble(c)), lookup(t.low, low_nibble(s)), lookup(t.low, high_nibble(s)));
    } else {
        for (int i = 0; i < 8; i += 4) {
            const uint8x16_t x = vld1q_u8(p + 16 * i), a = low_nibble(x), b = high_nibble(x);
            use(i, lookup(t.low, a), lookup(t.high, a), lookup(t.low, b), lookup(t.high, b));
        }
    }
}

// ---- trellis: units of two nibbles, layout in codec/tile.h. The larger table of 4 bits and its second one, added modulo 256.

inline uint8x16_t two_tables(const TrellisTable& t, uint8x16_t code, uint8x16_t last) {
    return vaddq_u8(vqtbl1q_u8(t.unit[0], code), vqtbl1q_u8(t.second, last));
}

// The last unit of a dim group of K, as the predecessor of the next group: 3 bit that unit, else the plane with it.
template <int Bits> [[gnu::always_inline]] inline uint8x16_t last_unit(const uint8_t* p) {
    if constexpr (Bits != 3) return vld1q_u8(p + (Bits - 1) * 64);
    const uint8x16_t ab = vbslq_u8(byte(0x11), vld1q_u8(p), vld1q_u8(p + 64));
    return vandq_u8(vbslq_u8(byte(0x44), vld1q_u8(p + 128), ab), byte(0x77));
}

// One dim group of K. last: last_unit of the group before, becomes that of this group.
template <int Bits, class Use>
[[gnu::always_inline]] inline void unpack_k(const uint8_t* p, uint8x16_t& last, const TrellisTable& t, Use use) {
    uint8x16_t x[4];
    if constexpr (Bits == 4) {
        uint8x16_t v[4], low = low_nibble(last), high = high_nibble(last);
        for (int u = 0; u < 4; u++) {
            last               = vld1q_u8(p + 64 * u);
            const uint8x16_t l = low_nibble(last), h = high_nibble(last);
            v[u] = two_tables(t, l, low), x[u] = two_tables(t, h, high);
            low = l, high = h;
        }
        use(0, v[0], v[1], v[2], v[3]);
        use(4, x[0], x[1], x[2], x[3]);
        return;
    } else if constexpr (Bits == 3) {
        const uint8x16_t A = vld1q_u8(p), B = vld1q_u8(p + 64), C = vld1q_u8(p + 128);
        const uint8x16_t a = vandq_u8(A, byte(0xee)), b = vandq_u8(B, byte(0xdd)), c = vandq_u8(C, byte(0xbb));
        x[0] = veorq_u8(a, last);
        x[1] = veorq_u8(a, b);
        x[2] = veorq_u8(b, c);
        last = veorq_u8(veorq_u8(veorq_u8(A, B), C), veorq_u8(x[1], c)); // what A, B, C have beside a, b, c
        x[3] = veorq_u8(last, c);
    } else {
        // An even unit has its index rotated by two: own bits at 0-1, the predecessor's at 2-3, which is where they lie.
        for (int i = 0; i < 2; i++) {
            const uint8x16_t now = vld1q_u8(p + 64 * i);
            x[2 * i]             = veorq_u8(vandq_u8(now, byte(0x33)), vandq_u8(last, byte(0xdd)));
            x[2 * i + 1]         = veorq_u8(now, vandq_u8(last, byte(0x44)));
            last                 = now;
        }
    }
    use(0, vqtbl1q_u8(t.unit[0], low_nibble(x[0])), vqtbl1q_u8(t.unit[1], low_nibble(x[1])), vqtbl1q_u8(t.unit[2], low_nibble(x[2])),
        vqtbl1q_u8(t.unit[3], low_nibble(x[3])));
    use(4, vqtbl1q_u8(t.unit[0], high_nibble(x[0])), vqtbl1q_u8(t.unit[1], high_nibble(x[1])), vqtbl1q_u8(t.unit[2], high_nibble(x[2])),
        vqtbl1q_u8(t.unit[3], high_nibble(x[3])));
}

// 32 tokens of quarter q of a dim group of V. four, eight: the quarters with the dims four and eight before, planes 64 bytes apart, too.
template <int Bits, class Use> [[gnu::always_inline]] inline void unpack_v(const uint8_t* p, const uint8_t* four, const uint8_t* eight,
                                                                           int q, const TrellisTable& t, Use use) {
    const uint8x16_t* const unit = Bits == 3 ? t.unit + q : t.unit;
    if constexpr (Bits == 4) {
        for (int u = 0; u < 4; u += 2) {
            const uint8x16_t x = vld1q_u8(p + 64 * u), y = vld1q_u8(p + 64 * u + 64);
            const uint8x16_t a = vld1q_u8(four + 64 * u), b = vld1q_u8(four + 64 * u + 64);
            use(2 * u, two_tables(t, low_nibble(x), low_nibble(a)), two_tables(t, high_nibble(x), high_nibble(a)),
                two_tables(t, low_nibble(y), low_nibble(b)), two_tables(t, high_nibble(y), high_nibble(b)));
        }
        return;
    }
    uint8x16_t x[4];
    if constexpr (Bits == 3) {
        for (int i = 0; i < 3; i++) {
            const uint8x16_t now = vld1q_u8(p + 64 * i), last = vld1q_u8(four + 64 * i);
            const auto       at = [&](int phase) { return byte(0x11 << phase % 4); };
            // the positions that belong to unit 3, and to its predecessor
            const uint8x16_t e = veorq_u8(vandq_u8(now, at(i + q)), vandq_u8(last, at(i + q + 3)));
            x[i]               = veorq_u8(veorq_u8(now, last), e);
            x[3]               = i == 0 ? e : veorq_u8(x[3], e);
        }
    } else if constexpr (Bits == 2) {
        for (int i = 0; i < 2; i++) {
            const uint8x16_t last = vld1q_u8(four + 64 * i);
            const uint8x16_t own  = veorq_u8(vld1q_u8(p + 64 * i), vandq_u8(vld1q_u8(eight + 64 * i), byte(0x55)));
            x[2 * i]              = vbslq_u8(byte(0x33), own, vshlq_n_u8(last, 2));
            x[2 * i + 1]          = vbslq_u8(byte(0x33), vshrq_n_u8(last, 2), own);
        }
    }
    use(0, vqtbl1q_u8(unit[0], low_nibble(x[0])), vqtbl1q_u8(unit[0], high_nibble(x[0])), vqtbl1q_u8(unit[1], low_nibble(x[1])),
        vqtbl1q_u8(unit[1], high_nibble(x[1])));
    use(4, vqtbl1q_u8(unit[2], low_nibble(x[2])), vqtbl1q_u8(unit[2], high_nibble(x[2])), vqtbl1q_u8(unit[3], low_nibble(x[3])),
        vqtbl1q_u8(unit[3], high_nibble(x[3])));
}

// ---- what the kernels call. K in blocks of four tokens, a quarter of a 16-token vector; V in quarters of a dim group.

// All dim groups of a block of K: use(g, i, v_i, …, v_i+3).
template <class C, class Use>
[[gnu::always_inline]] inline void walk_k(const uint8_t* tile, int block, int groups, const Table<C>& t, Use use) {
    constexpr int  kGroup = C::bits * 64;
    const uint8_t* p      = tile + static_cast<size_t>(block / 4) * groups * kGroup + block % 4 * 16;
    if constexpr (C::trellis) {
        uint8x16_t last = last_unit<C::bits>(p);
        for (int n = 1; n <= groups; n++) { // group 0 last: it needs the last one
            const int g = n < groups ? n : 0;
            if (g == 0) last = vsliq_n_u8(high_nibble(last), last, 4); // a segment's halves are the nibbles
            fetch_next<C, kGroup / 4>(tile + (static_cast<size_t>(block) * groups + n - 1) * (kGroup / 4), groups * 32);
            unpack_k<C::bits>(
                p + g * kGroup, last, t, [&](int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    use(g, i, a, b, c, e);
                });
        }
    } else {
        for (int g = 0; g < groups; g++, p += kGroup) {
            fetch_next<C, kGroup / 4>(tile + (static_cast<size_t>(block) * groups + g) * (kGroup / 4), groups * 32);
            unpack<C::bits>(
                p, t, [&](int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
                    use(g, i, a, b, c, e);
                });
        }
    }
}

// The tokens of a quarter of V, of `quarters`: use(s, i, v_i, …, v_i+3), i counts vectors of the 32 tokens s.
template <class C, class Use>
[[gnu::always_inline]] inline void walk_v(const uint8_t* tile, int quarter, int quarters, const Table<C>& t, Use use) {
    constexpr int  kTokens = C::bits * 64;
    const auto     place   = [&](int x) { return tile + static_cast<size_t>(x / 4) * 2 * kTokens + x % 4 * 16; };
    const int      before  = part_before(quarter, quarters, 4);
    const uint8_t *p = place(quarter), *four = place(before), *eight = place(part_before(before, quarters, 4));
    for (int s = 0; s < 2; s++, p += kTokens, four += kTokens, eight += kTokens) {
        const auto v = [&](int i, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t e) __attribute__((always_inline)) {
            use(s, i, a, b, c, e);
        };
        fetch_next<C, kTokens / 4>(tile + (static_cast<size_t>(quarter) * 2 + s) * (kTokens / 4), quarters * 4);
        if constexpr (C::trellis) unpack_v<C::bits>(p, four, eight, quarter % 4, t, v);
        else unpack<C::bits>(p, t, v);
    }
}

} // namespace
} // namespace tightkv
