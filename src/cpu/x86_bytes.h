// 16 bytes at a time for codec/trellis_row.h, on every x86 level.
#pragma once
#include <immintrin.h>

#include "codec/trellis_row.h"

namespace tightkv {
namespace {

struct X86Bytes {
    static Bytes look(Bytes table, Bytes index) { return Bytes(_mm_shuffle_epi8(__m128i(table), __m128i(index))); }
    static Words square(Words e) { return Words(_mm_mulhrs_epi16(__m128i(e), __m128i(e))); }
    static Words add(Words a, Words b) { return Words(_mm_adds_epi16(__m128i(a), __m128i(b))); }
    static Words sub(Words a, Words b) { return Words(_mm_subs_epu16(__m128i(a), __m128i(b))); }
};

} // namespace
} // namespace tightkv
