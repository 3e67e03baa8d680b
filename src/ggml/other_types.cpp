// Caches of other types, by name.
#include "ggml/other_types.h"

#include <cstring>
#include <string>

#include "ggml/stats.h"

namespace tightkv {

void OtherTypes::look_at(const ggml_tensor* t) {
    if (t->view_src || t->type == GGML_TYPE_F16) return;
    if (std::strncmp(t->name, "cache_k_l", 9) == 0) k_ = t->type;
    if (std::strncmp(t->name, "cache_v_l", 9) == 0) v_ = t->type;
}

void OtherTypes::tell() const {
    const auto left = [](const char* what, ggml_type type) {
        say(std::string(what) + " of type " + ggml_type_name(type) + " left to the host; tightkv compresses f16 caches");
    };
    if (k_ != kNone && k_ == v_) return left("cache", k_);
    if (k_ != kNone) left("keys", k_);
    if (v_ != kNone) left("values", v_);
}

} // namespace tightkv
