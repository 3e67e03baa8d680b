// ggml's own attention operator (GGML_OP_FLASH_ATTN_EXT on the CPU backend) as a side of the comparison, laid out as llama.cpp does it: the
// rows of one token lie together over all heads, [head_dim, n_kv_heads, n_kv], and are viewed as [head_dim, n_kv, n_kv_heads]; the mask is
// f16.
#pragma once
#include <memory>
#include <string>

#include "bench/contender.h"

namespace tightkv::tool {

// library: empty for the llama.cpp this program is linked to; else a folder with a libggml.so to load beside it, of llama.cpp or a fork
// that keeps ggml's graph functions (once per process). type: f16, q8_0, q4_0, … Throws Failure.
std::unique_ptr<bench::Contender> make_llama_attention(const std::string& library, const std::string& name, const std::string& type,
                                                       const bench::AttentionData& data, double total_bytes, int threads);

} // namespace tightkv::tool
