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

} // namespace

void require_profile(const std::string& model, const CacheChoice& cache) {
    if (cache.stock || cache.spec.profile.empty()) return;
    static std::set<std::pair<std::string, std::string>> passed; // a context is made for every path
    const std::pair                                      pair(model, cache.spec.profile);
    if (passed.contains(pair)) return;
    Profile p;
    if (const Status s = Profile::load(cache.spec.profile, p); !s.ok()) throw failure(s.message());
    std::vector<int> blocks;
    for (const LayerProfile& l : p.layers) blocks.push_back(l.block);
    if (fingerprint_of_blocks(model, blocks) != p.fingerprint())
        throw failure(fmt::format("profile {} belongs to another model: its fingerprint is {} ({}), that of {} is {}", cache.spec.profile,
                                  p.fingerprint(), p.architecture, model, fingerprint_of_blocks(model, norm_blocks_of(model))));
    passed.insert(pair);
}

void require_profile(const Model& m, const CacheChoice& cache) {
    if (cache.stock || cache.spec.profile.empty()) return;
    require_profile(m.path(), cache);
    Profile p;
    if (const Status s = Profile::load(cache.spec.profile, p); !s.ok()) throw failure(s.message());
    for (const LayerProfile& l : p.layers)
        for (const auto& [op, d] : {std::pair(Operand::K, m.head_dim_k()), std::pair(Operand::V, m.head_dim_v())})
            if (l.head_dim(op) != d)
                throw failure(fmt::format("profile {} has head_dim {}, {} has {}", cache.spec.profile, l.head_dim(op), m.path(), d));
}

} // namespace tightkv::tool
