// The inner loops of own_kernels.cpp, in a unit of their own that is compiled for AVX2; plain arguments, so that nothing shared is.
#pragma once
#include <cstdint>

namespace tightkv::bench {

inline constexpr int kOwnTile = 64, kOwnRows = 8, kOwnPanel = 16;

// Scores are in log2: q comes scaled by scale * log2(e). m starts at -inf, l and o at 0; o / l is the result.
struct F16Run {
    const uint16_t *k, *v; // [..][d] fp16
    int64_t         begin, end;
    int             d, rows; // 1, 2, 4 or 8
    const float*    q;       // [rows][d]
    float *         m, *l;   // [rows]
    float*          o;       // [rows][d]
};
void own_f16_run(const F16Run& r);

// Rows lie in panels of 16 lanes: row r is lane r % 16 of panel r / 16.
struct F32Block {
    const uint16_t *k, *v; // [..][d] fp16
    int             d, panels;
    const float*    q;                        // [panel][d][16]
    const int64_t*  visible;                  // [row] keys it attends to
    float *         m, *l;                    // [row]
    float*          o;                        // [panel][d][16]
    float *         k_tile, *v_tile, *scores; // work space: 64*d, 64*d, 64*16; all 64-byte aligned
};
void own_f32_block(const F32Block& b);

} // namespace tightkv::bench
