// The profiles that are loaded, and whose model they are of.
#include "ggml/model_profile.h"

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "ggml-backend.h"
#include "ggml/stats.h"

namespace tightkv {

namespace {

std::mutex                                            lock;
std::map<std::string, std::shared_ptr<const Profile>> loaded; // by name

} // namespace

Status load_profile(const CacheSpec& spec) {
    if (spec.profile.empty()) return {};
    auto p = std::make_shared<Profile>();
    if (Status s = Profile::load(spec.profile, *p); !s.ok()) return s;
    const std::lock_guard guard(lock);
    loaded[spec.profile] = std::move(p);
    return {};
}

std::shared_ptr<const Profile> profile_of(const CacheSpec& spec) {
    if (spec.profile.empty()) return nullptr;
    const std::lock_guard guard(lock);
    const auto            at = loaded.find(spec.profile);
    return at == loaded.end() ? nullptr : at->second;
}

int block_of(const ggml_tensor* cache) {
    const char* l = std::strrchr(cache->name, '_');
    return l && l[1] == 'l' && l[2] >= '0' && l[2] <= '9' ? std::atoi(l + 2) : -1;
}

bool profile_fits(const std::vector<const ggml_tensor*>& caches, const CacheSpec& spec) {
    const auto profile = profile_of(spec);
    if (!profile) return true;
    for (const ggml_tensor* t : caches) {
        const LayerProfile* l  = profile->layer_of_block(block_of(t));
        const Operand       op = std::strncmp(t->name, "cache_v", 7) == 0 ? Operand::V : Operand::K;
        const Status        s =
            l ? Profile::fits(*l, op, 0, t->ne[0]) : invalid_argument("the profile has no block " + std::to_string(block_of(t)));
        if (s.ok()) continue;
        // A model may have several caches, and each of them another block that is wrong.
        say_once("the host runs stock: profile " + spec.profile + " does not fit this model: " + s.message(), "fit " + spec.profile);
        return false;
    }
    return true;
}

ModelCheck::ModelCheck(std::shared_ptr<const Profile> profile) : profile_(std::move(profile)) {
    for (const LayerProfile& l : profile_->layers) open_ += l.norm != 0;
}

bool ModelCheck::look(ggml_cgraph* graph, const CacheSpec& spec, std::string& line) {
    bool news = false;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++)
        for (const ggml_tensor* t : ggml_graph_node(graph, i)->src) {
            int block = 0;
            if (!t || t->name[0] != 'b' || std::sscanf(t->name, "blk.%d.attn_norm.weight", &block) != 1 || seen_.contains(block) ||
                norm_name(block) != t->name || t->type != GGML_TYPE_F32 || !ggml_is_contiguous(t) || !t->buffer ||
                !ggml_backend_buffer_is_host(t->buffer))
                continue;
            seen_[block]          = norm_hash(t->name, {static_cast<const uint8_t*>(t->data), ggml_nbytes(t)});
            const LayerProfile* l = profile_->layer_of_block(block);
            if (!l || l->norm == 0) continue;
            open_--, news = true;
        }
    if (!news) return true;
    std::vector<std::pair<int, uint64_t>> blocks; // what was not shown yet is taken for what it should be
    for (const LayerProfile& l : profile_->layers)
        blocks.emplace_back(l.block, l.norm != 0 && seen_.contains(l.block) ? seen_[l.block] : l.norm);
    const std::string wanted = profile_->fingerprint();
    if (fingerprint_of(blocks) == wanted) return true;
    open_ = 0;
    blocks.assign(seen_.begin(), seen_.end()); // all of the model, as calibrate has it, unless the host computes its graphs in parts
    line = "profile " + spec.profile + " belongs to another model: its fingerprint is " + wanted + ", this model's is " +
           fingerprint_of(blocks) + "; the cache goes on without it";
    return false;
}

} // namespace tightkv
