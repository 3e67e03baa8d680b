// Unpacking on 256 bits: eight vectors of codes -> eight vectors of table bytes, handed on four at a time. Used by avx2_isa.h alone;
// internal linkage.
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "cpu/attend_common.h"

namespace tightkv {

namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

struct LevelTable {
    __m256i low;  // index in the low bits of a nibble; 8 bit: the offset, which XOR adds
    __m256i high; // 2 bit only: index in bits 2-3 of a nibble
};
// V is read in halves of a dim group. At 3 bits they differ in their phases: what serves unit or plane i of half h is at [i + 2h].
struct TrellisTable {
    __m256i unit[6];
    __m256i second;  // 4 bit
    __m256i free[6]; // V at 3 bits: plane i of half h has of unit 3 the positions free[i + 2h + 1], and of its predecessor free[i + 2h]
};
template <class C> using Table = std::conditional_t<C::trellis, TrellisTable, LevelTable>;

template <class C> Table<C> make_table(Operand op, int offset) { // offset: 0 or 128
    alignas(32) int8_t bytes[32];
    const auto         vector = [&] { return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)); };
    Table<C>           t{};
    if constexpr (C::bits == 8) {
        t.low = _mm256_set1_epi8(static_cast<char>(offset));
    } else if constexpr (!C::trellis) {
        const Codebook& book = codebook(C::bits);
        for (int i = 0; i < 32; i++) bytes[i] = static_cast<int8_t>(book.level[i % 16 % book.n] + offset);
        t.low = vector();
        for (int i = 0; i < 32; i++) bytes[i] = static_cast<int8_t>(book.level[(i % 16 >> 2) % book.n] + offset);
        t.high = vector();
    } else {
        const bool lanes = op == Operand::V && C::bits == 3;
        for (int i = 0; i < 6; i++) {
            for (int x = 0; x < 2; x++) trellis_table(C::bits, unit_phase(C::bits, i) + (lanes ? x : 0), offset, bytes + 16 * x);
            t.unit[i] = vector();
            for (int k = 0; k < 32; k++) bytes[k] = static_cast<int8_t>(0x11 << (i + 3 + k / 16) % 4);
            t.free[i] = vector();
        }
        for (int i = 0; i < 32; i++) bytes[i] = trellis(C::bits).second[static_cast<size_t>(i % 8)];
        t.second = vector();
    }
    return t;
}

inline __m256i byte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline __m256i lookup(__m256i table, __m256i index) { return _mm256_shuffle_epi8(table, index); } // bits 0-3; 0 where bit 7 is set
inline __m256i low_nibble(__m256i x) { return _mm256_and_si256(x, byte(15)); }
inline __m256i high_nibble(__m256i x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), byte(15)); }

// ---- levels. p: this half (32 bytes) of the first plane; planes are 64 bytes apart. use(i, v_i, v_i+1, v_i+2, v_i+3) for i = 0, 4.

template <int Bits, class Use> [[gnu::always_inline]] inline void unpack(const uint8_t* p, const LevelTable& t, Use use) {
    if constexpr (Bits == 8) {
        const auto level = [&](int i) { return _mm256_xor_si256(load(p + 64 * i), t.low); };
        for (int i = 0; i < 8; i += 4) use(i, level(i), level(i + 1), level(i + 2), level(i + 3));
    } else if constexpr (Bits == 4) {
        for (int i = 0; i < 8; i += 4) {
            const __m256i a = load(p + 32 * i), b = load(p + 32 * i + 64);
            use(i, lookup(t.low, low_nibble(a)), lookup(t.low, high_nibble(a)), lookup(t.low, low_nibble(b)),
                lookup(t.low, high_nibble(b)));
        }
    } else if constexpr (Bits == 3) {
        // after & 0x77 both nibbles index directly
        const __m256i keep = byte(0x77);
        const __m256i A = load(p), B = load(p + 64), C = load(p + 128);
        const __m256i a = _mm256_and_si256(A, keep), b = _mm256_and_si256(B, keep), c = _mm256_and_si256(C, keep);
        use(0, lookup(t.low, a), lookup(t.low, _mm256_srli_epi16(a, 4)), lookup(t.low, b), lookup(t.low, _mm256_srli_epi16(b, 4)));
        // the spare bits 3 and 7 of A, B, C are bits 0, 1, 2 of v6 and v7
        __m256i s = _mm256_srli_epi16(_mm256_xor_si256(A, a), 1);
        s         = _mm256_srli_epi16(_mm256_or_si256(s, _mm256_xor_si256(B, b)), 1);
        s         = _mm256_srli_epi16(_mm256_or_si256(s, _mm256_xor_si256(C, c)), 1);
        use(4, lookup(t.low, c), lookup(t.low, _mm256_srli_epi16(c, 4)), lookup(t.low, s), lookup(t.low, _mm256_srli_epi16(s, 4)));
    } else {
        for (int i = 0; i < 8; i += 4) {
            const __m256i x  = load(p + 16 * i);
            const __m256i lo = low_nibble(x), hi = high_nibble(x);
            use(i, lookup(t.low, lo), lookup(t.high, lo), lookup(t.low, hi), lookup(t.high, hi));
        }
    }
}

// ---- trellis: units of two nibbles, layout in codec/tile.h

// The last unit of a dim group of K, as the predecessor of the next group: 3 bit that unit, else the plane with it.
template <int Bits> [[gnu::always_inline]] inline __m256i last_unit(const uint8_t* p) {
    if constexpr (Bits != 3) return load(p + (Bits - 1) * 64);
    return _mm256_or_si256(_mm256_or_si256(_mm256_and_si256(load(p), byte(0x11)), _mm256_and_si256(load(p + 64), byte(0x22))),
                           _mm256_and_si256(load(p + 128), byte(0x44)));
}

// One dim group of K. last: last_unit of the group before, becomes that of this group.
template <int Bits, class Use>
[[gnu::always_inline]] inline void unpack_k(const uint8_t* p, __m256i& last, const TrellisTable& t, Use use) {
    __m256i x[4];
    if constexpr (Bits == 4) {
        __m256i v[4], low = low_nibble(last), high = high_nibble(last);
        for (int u = 0; u < 4; u++) {
            last            = load(p + 64 * u);
            const __m256i l = low_nibble(last), h = high_nibble(last);
            v[u] = _mm256_add_epi8(lookup(t.unit[0], l), lookup(t.second, low));
            x[u] = _mm256_add_epi8(lookup(t.unit[0], h), lookup(t.second, high));
            low = l, high = h;
        }
        use(0, v[0], v[1], v[2], v[3]);
        use(4, x[0], x[1], x[2], x[3]);
        return;
    } else if constexpr (Bits == 3) {
        const __m256i A = load(p), B = load(p + 64), C = load(p + 128);
        const __m256i a = _mm256_and_si256(A, byte(0xee)), b = _mm256_and_si256(B, byte(0xdd)), c = _mm256_and_si256(C, byte(0xbb));
        x[0] = _mm256_xor_si256(a, last);
        x[1] = _mm256_xor_si256(a, b);
        x[2] = _mm256_xor_si256(b, c);
        last = _mm256_xor_si256(_mm256_xor_si256(_mm256_xor_si256(A, B), C), _mm256_xor_si256(x[1], c)); // what A, B, C have beside a, b, c
        x[3] = _mm256_xor_si256(last, c);
    } else {
        // An even unit has its index rotated by two: own bits at 0-1, the predecessor's at 2-3, which is where they lie.
        for (int i = 0; i < 2; i++) {
            const __m256i now = load(p + 64 * i);
            x[2 * i]          = _mm256_xor_si256(_mm256_and_si256(now, byte(0x33)), _mm256_and_si256(last, byte(0xdd)));
            x[2 * i + 1]      = _mm256_xor_si256(now, _mm256_and_si256(last, byte(0x44)));
            last              = now;
        }
    }
    use(0, lookup(t.unit[0], low_nibble(x[0])), lookup(t.unit[1], low_nibble(x[1])), lookup(t.unit[2], low_nibble(x[2])),
        lookup(t.unit[3], low_nibble(x[3])));
    use(4, lookup(t.unit[0], high_nibble(x[0])), lookup(t.unit[1], high_nibble(x[1])), lookup(t.unit[2], high_nibble(x[2])),
        lookup(t.unit[3], high_nibble(x[3])));
}

// 32 tokens of half h of a dim group of V, h known when compiled. eight: the half that holds the dims eight before, 64 bytes from plane to
// plane, too.
template <int Bits, class Use>
[[gnu::always_inline]] inline void unpack_v(const uint8_t* p, const uint8_t* eight, int h, const TrellisTable& t, Use use) {
    const __m256i* const unit = t.unit + 2 * h;
    const auto           four = [&](int plane) { // the dims four before
        if (h == 1) return load(p + 64 * plane - 16);
        const auto quarter = [&](const uint8_t* q) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 64 * plane)); };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(eight + 16)), quarter(p), 1);
    };
    if constexpr (Bits == 4) {
        const auto first = [&](__m256i x, __m256i last) {
            return _mm256_add_epi8(lookup(t.unit[0], low_nibble(x)), lookup(t.second, last));
        };
        const auto second = [&](__m256i x, __m256i last) {
            return _mm256_add_epi8(lookup(t.unit[0], high_nibble(x)), lookup(t.second, _mm256_srli_epi16(last, 4)));
        };
        for (int u = 0; u < 4; u += 2) {
            const __m256i x = load(p + 64 * u), y = load(p + 64 * u + 64);
            const __m256i a = _mm256_and_si256(four(u), byte(0x77)), b = _mm256_and_si256(four(u + 1), byte(0x77)); // both nibbles index
            use(2 * u, first(x, a), second(x, a), first(y, b), second(y, b));
        }
        return;
    }
    __m256i x[4];
    if constexpr (Bits == 3) {
        const __m256i* const free = t.free + 2 * h;
        for (int i = 0; i < 3; i++) {
            const __m256i now = load(p + 64 * i), last = four(i);
            // the positions that belong to unit 3, and to its predecessor
            const __m256i e = _mm256_xor_si256(_mm256_and_si256(now, free[i + 1]), _mm256_and_si256(last, free[i]));
            x[i]            = _mm256_xor_si256(_mm256_xor_si256(now, last), e);
            x[3]            = i == 0 ? e : _mm256_xor_si256(x[3], e);
        }
    } else if constexpr (Bits == 2) {
        for (int i = 0; i < 2; i++) {
            const __m256i low = byte(0x33), last = four(i);
            const __m256i q = _mm256_xor_si256(load(p + 64 * i), _mm256_and_si256(load(eight + 64 * i), byte(0x55)));
            x[2 * i]        = _mm256_or_si256(_mm256_and_si256(q, low), _mm256_slli_epi16(_mm256_and_si256(last, low), 2));
            x[2 * i + 1]    = _mm256_or_si256(_mm256_andnot_si256(low, q), _mm256_and_si256(_mm256_srli_epi16(last, 2), low));
        }
    }
    use(0, lookup(unit[0], low_nibble(x[0])), lookup(unit[0], high_nibble(x[0])), lookup(unit[1], low_nibble(x[1])),
        lookup(unit[1], high_nibble(x[1])));
    use(4, lookup(unit[2], low_nibble(x[2])), lookup(unit[2], high_nibble(x[2])), lookup(unit[3], low_nibble(x[3])),
        lookup(unit[3], high_nibble(x[3])));
}

// ---- what the kernels call. K in blocks of eight tokens, half of a 16-token vector; V in halves of a dim group.

// All dim groups of a block of K: use(g, i, v_i, …, v_i+3).
template <class C, class Use>
[[gnu::always_inline]] inline void walk_k(const uint8_t* tile, int block, int groups, const Table<C>& t, Use use) {
    constexpr int  kGroup = C::bits * 64;
    const uint8_t* p      = tile + static_cast<size_t>(block / 2) * groups * kGroup + block % 2 * 32;
    if constexpr (C::trellis) {
        __m256i last = last_unit<C::bits>(p);
        for (int n = 1; n <= groups; n++) { // group 0 last: it needs the last one
            const int g = n < groups ? n : 0;
            if (g == 0)
                last = _mm256_or_si256(high_nibble(last), _mm256_slli_epi16(low_nibble(last), 4)); // a segment's halves are the nibbles
            fetch_next<C, kGroup / 2>(tile + (static_cast<size_t>(block) * groups + n - 1) * (kGroup / 2), groups * 32);
            unpack_k<C::bits>(
                p + g * kGroup, last,
                t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) { use(g, i, a, b, c, e); });
        }
    } else {
        for (int g = 0; g < groups; g++, p += kGroup) {
            fetch_next<C, kGroup / 2>(tile + (static_cast<size_t>(block) * groups + g) * (kGroup / 2), groups * 32);
            unpack<C::bits>(
                p, t, [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) { use(g, i, a, b, c, e); });
        }
    }
}

// Half h of dim group g of V, of `groups`: use(s, i, v_i, …, v_i+3), i counts vectors of the 32 tokens s.
template <class C, class Use>
[[gnu::always_inline]] inline void walk_v(const uint8_t* tile, int g, int groups, int h, const Table<C>& t, Use use) {
    constexpr int  kTokens = C::bits * 64;
    const uint8_t *p       = tile + static_cast<size_t>(g) * 2 * kTokens + 32 * h,
                  *eight   = h == 1 ? p - 32 : tile + static_cast<size_t>(part_before(g, groups, 1)) * 2 * kTokens + 32;
    for (int s = 0; s < 2; s++, p += kTokens, eight += kTokens) {
        const auto v = [&](int i, __m256i a, __m256i b, __m256i c, __m256i e) __attribute__((always_inline)) { use(s, i, a, b, c, e); };
        fetch_next<C, kTokens / 2>(tile + (static_cast<size_t>(g) * 4 + h * 2 + s) * (kTokens / 2), groups * 16);
        if constexpr (C::trellis) unpack_v<C::bits>(p, eight, h, t, v);
        else unpack<C::bits>(p, t, v);
    }
}

// use(g, h) for all halves of all dim groups of V. Trellis codes get code of its own for either half: their constants differ.
template <class C, class Use> [[gnu::always_inline]] inline void each_half(int groups, Use use) {
    for (int n = 0; n < groups; n++) {
        const int g = nth_part<C>(n, groups, 1);
        if constexpr (C::trellis) use(g, 0), use(g, 1);
        else
            for (int h = 0; h < 2; h++) use(g, h);
    }
}

} // namespace
} // namespace tightkv
