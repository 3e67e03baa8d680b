// Rivals of our own: what a well-written kernel on plain f16 rows reaches, so that a ratio says more than how slow the others are.
//   own:f16  for few rows: every f16 row is loaded once for all query heads of its group, online softmax; the "ideal f16" of decoding
//   own:f32  for many rows: a tile of 64 rows is expanded to f32 once per 128 query rows, then two register-blocked products
// AVX2, FMA and F16C. Not shipped: nothing in src/ uses them.
#pragma once
#include "attention_data.h"
#include "thread_team.h"

namespace tightkv::bench {

struct OwnCall {
    AttentionShape  shape;
    const uint16_t *k, *v; // [kv_head][n_kv][head_dim] fp16
    const float*    q;     // [token][head][head_dim]
    float*          out;   // the same
};
using OwnKernel = void(const OwnCall&, ThreadTeam&);

bool      own_kernels_available(); // this processor can
OwnKernel own_f16_attend, own_f32_attend;

} // namespace tightkv::bench
