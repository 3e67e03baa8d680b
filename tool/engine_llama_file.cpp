// GGUF files: is one quantised, what identifies its model, and the same model in F32.
#include <cstdio>
#include <fstream>
#include <memory>
#include <set>

#include <unistd.h>

#include <fmt/format.h>

#include "cache/profile.h"
#include "engine_llama.h"
#include "engine_llama_private.h"
#include "errors.h"
#include "gguf.h"

namespace tightkv::tool {

namespace {

using Gguf = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

Gguf open_gguf(const std::string& path) {
    gguf_init_params params = {};
    params.no_alloc         = true;
    host_messages().last_error.clear();
    Gguf file(gguf_init_from_file(path.c_str(), params), &gguf_free);
    if (!file) throw failure(fmt::format("cannot load model {}: {}", path, why_host_failed("not a GGUF file")));
    return file;
}

// The file and, where the model is split into several, the others.
std::vector<std::string> parts_of(const std::string& path, const gguf_context* file) {
    const int64_t key = gguf_find_key(file, "split.count");
    const int     n   = key >= 0 && gguf_get_kv_type(file, key) == GGUF_TYPE_UINT16 ? gguf_get_val_u16(file, key) : 0;
    if (n < 2) return {path};
    std::vector<std::string> parts;
    char                     prefix[4096], part[4096];
    for (int i = 0; i < n; i++)
        if (llama_split_prefix(prefix, sizeof prefix, path.c_str(), i, n) > 0)
            for (int k = 0; k < n; k++)
                if (llama_split_path(part, sizeof part, prefix, k, n) > 0) parts.emplace_back(part);
    return parts;
}

} // namespace

bool is_quantized(const std::string& path) {
    const Gguf file = open_gguf(path);
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++)
        if (ggml_is_quantized(gguf_get_tensor_type(file.get(), i))) return true;
    return false;
}

std::string architecture_of(const std::string& path) {
    const Gguf    file = open_gguf(path);
    const int64_t key  = gguf_find_key(file.get(), "general.architecture");
    return key >= 0 && gguf_get_kv_type(file.get(), key) == GGUF_TYPE_STRING ? gguf_get_val_str(file.get(), key) : "";
}

std::vector<uint64_t> norms_of(const std::string& path, std::span<const int> blocks) {
    std::vector<uint64_t> norms(blocks.size(), 0);
    for (const std::string& part : parts_of(path, open_gguf(path).get())) {
        const Gguf    file = open_gguf(part);
        std::ifstream in(part, std::ios::binary);
        for (size_t i = 0; i < blocks.size(); i++) {
            const std::string name = norm_name(blocks[i]);
            const int64_t     t    = gguf_find_tensor(file.get(), name.c_str());
            if (t < 0 || gguf_get_tensor_type(file.get(), t) != GGML_TYPE_F32) continue;
            std::vector<uint8_t> bytes(gguf_get_tensor_size(file.get(), t));
            in.seekg(static_cast<std::streamoff>(gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), t)));
            in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
            if (!in) throw failure(fmt::format("cannot read model {}: it is truncated", part));
            norms[i] = norm_hash(name, bytes);
        }
    }
    return norms;
}

std::vector<int> norm_blocks_of(const std::string& path) {
    std::set<int> blocks;
    for (const std::string& part : parts_of(path, open_gguf(path).get())) {
        const Gguf file = open_gguf(part);
        for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++) {
            int               block = 0;
            const char* const name  = gguf_get_tensor_name(file.get(), i);
            if (std::sscanf(name, "blk.%d.", &block) == 1 && norm_name(block) == name) blocks.insert(block);
        }
    }
    return {blocks.begin(), blocks.end()};
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
