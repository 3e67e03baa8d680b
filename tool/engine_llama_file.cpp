// GGUF files: is one quantised, and the same model in F32.
#include <memory>

#include <unistd.h>

#include <fmt/format.h>

#include "engine_llama.h"
#include "engine_llama_private.h"
#include "errors.h"
#include "gguf.h"

namespace tightkv::tool {

bool is_quantized(const std::string& path) {
    gguf_init_params params = {};
    params.no_alloc         = true;
    host_messages().last_error.clear();
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_from_file(path.c_str(), params), &gguf_free);
    if (!file) throw failure(fmt::format("cannot load model {}: {}", path, why_host_failed("not a GGUF file")));
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++)
        if (ggml_is_quantized(gguf_get_tensor_type(file.get(), i))) return true;
    return false;
}

void expand_to_f32(const std::string& from, const std::string& to, int threads) {
    llama_model_quantize_params p = llama_model_quantize_default_params();
    p.nthread                     = threads;
    p.ftype                       = LLAMA_FTYPE_ALL_F32;
    p.allow_requantize            = true;
    host_messages().last_error.clear();
    if (llama_model_quantize(from.c_str(), to.c_str(), &p) != 0) {
        ::unlink(to.c_str());
        throw failure(fmt::format("cannot expand {} to {}: {} (is the disk full? --no-expand works without)", from, to,
                                  why_host_failed("llama.cpp says no more")));
    }
}

} // namespace tightkv::tool
