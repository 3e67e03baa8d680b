// Which file a model name means, and its expansion to F32.
#pragma once
#include <string>

namespace tightkv::tool {

// "default" -> $TIGHTKV_DEFAULT_MODEL, else the pinned model in the cache folder; anything else is a path. Throws Failure where there is no
// such file.
std::string model_path(const std::string& name);

// The file to measure quality with: `path` itself if nothing in it is quantised, else its expansion to F32, made once and kept in
// $CACHE/models. Quantised weights on a CPU have quantised activations, whose rounding hides small differences between caches.
// say: called with a sentence before something slow.
std::string unquantized_model(const std::string& path, int threads, void (*say)(const std::string&));

} // namespace tightkv::tool
