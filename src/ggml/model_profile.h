// The profile of a specification in the adapter: loaded when the specification is set, held against a cache's shape when that is
// allocated, and against the model's norms when the first graphs show them.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "cache/profile.h"
#include "ggml.h"

namespace tightkv {

// Loads the file of this specification again, for caches allocated from now on. Thread-safe.
Status load_profile(const CacheSpec& spec);
// What was loaded last under that name; null where the specification names none.
std::shared_ptr<const Profile> profile_of(const CacheSpec& spec);

// The i of "cache_k_l<i>"; -1 where there is none.
int block_of(const ggml_tensor* cache);
// Whether the profile has the shape of these caches; one line where it does not.
bool profile_fits(const std::vector<const ggml_tensor*>& caches, const CacheSpec& spec);

// What is known about the model of one buffer. A graph may show only some of its blocks.
class ModelCheck {
public:
    explicit ModelCheck(std::shared_ptr<const Profile> profile);
    bool done() const { return open_ == 0; }
    // False: the norms in this graph are not those that the profile was made with; `line` says so.
    bool look(ggml_cgraph* graph, const CacheSpec& spec, std::string& line);

private:
    std::shared_ptr<const Profile> profile_;
    std::map<int, uint64_t>        seen_; // by block
    size_t                         open_ = 0;
};

} // namespace tightkv
