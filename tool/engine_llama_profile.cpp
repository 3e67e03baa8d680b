// Does the profile of a cache belong to a model?
#include <set>

#include <fmt/format.h>

#include "cache/profile.h"
#include "engine_llama.h"
#include "errors.h"

namespace tightkv::tool {

namespace {

std::string fingerprint_of_blocks(const std::string& model, const std::vector<int>& blocks) {
    const std::vector<uint64_t>           norms = norms_of(model, blocks);
    std::vector<std::pair<int, uint64_t>> found;
    for (size_t i = 0; i < blocks.size(); i++) found.emplace_back(blocks[i], norms[i]);
    return fingerprint_of(found);
}

// The profile of a cache of ours that has one, if its norms are those of the model.
Profile profile_for(const std::string& model, const CacheChoice& cache) {
    Profile p;
    if (const Status s = Profile::load(cache.spec.profile, p); !s.ok()) throw failure(s.message());
    std::vector<int> blocks;
    for (const LayerProfile& l : p.layers) blocks.push_back(l.block);
    if (fingerprint_of_blocks(model, blocks) != p.fingerprint())
        throw failure(fmt::format("profile {} belongs to another model: its fingerprint is {} ({}), that of {} is {}", cache.spec.profile,
                                  p.fingerprint(), p.architecture, model, fingerprint_of_blocks(model, norm_blocks_of(model))));
    return p;
}

bool has_profile(const CacheChoice& cache) { return !cache.stock && !cache.spec.profile.empty(); }

} // namespace

void require_profile(const std::string& model, const CacheChoice& cache) {
    if (has_profile(cache)) profile_for(model, cache);
}

void require_profile(const Model& m, const CacheChoice& cache) {
    if (!has_profile(cache)) return;
    static std::set<std::pair<std::string, std::string>> passed; // a context is made for every path
    const std::pair                                      pair(m.path(), cache.spec.profile);
    if (passed.contains(pair)) return;
    const Profile p = profile_for(m.path(), cache);
    for (const LayerProfile& l : p.layers)
        for (const auto& [op, d] : {std::pair(Operand::K, m.head_dim_k()), std::pair(Operand::V, m.head_dim_v())})
            if (l.head_dim(op) != d)
                throw failure(fmt::format("profile {} has head_dim {}, {} has {}", cache.spec.profile, l.head_dim(op), m.path(), d));
    passed.insert(pair);
}

} // namespace tightkv::tool
