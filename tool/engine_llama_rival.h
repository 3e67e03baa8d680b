// A model and a context of ik_llama.cpp's libllama.so, loaded beside the llama.cpp that this program is linked to: for the speed of the
// whole model, in a process of its own. Its structs are not those of the headers here. Of its parameters only the beginning is known, and
// the values that it starts from must be where they are expected; that the cache is what was asked for is read from its own log. Functions
// as of Context (engine_llama.h).
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine_llama.h"

namespace tightkv::tool {

struct RivalContextOptions {
    std::string folder;      // with a libllama.so
    std::string name;        // in failures
    std::string model, type; // GGUF file; of K and V
    int         cells = 512, sequences = 1, batch = 512, threads = 1;
};

class RivalContext {
public:
    explicit RivalContext(const RivalContextOptions& options); // throws Failure
    ~RivalContext();

    bool                   decode(std::span<const BatchToken> batch); // true, or throws
    std::span<const float> logits(int index) const;
    double                 seconds() const { return seconds_; }
    double                 cache_bytes() const { return cache_bytes_; } // as its log says

    void                 remove(int sequence, int from_position);
    void                 share(int from_sequence, int to_sequence);
    std::vector<uint8_t> save(int sequence);
    void                 restore(int sequence, std::span<const uint8_t> state);
    int                  next_position(int sequence) const;

private:
    struct Library;
    [[noreturn]] void fail(const std::string& what) const; // with the library's last words

    std::unique_ptr<Library> lib_;
    std::string              name_;
    llama_model*             model_       = nullptr;
    llama_context*           context_     = nullptr;
    double                   cache_bytes_ = 0, seconds_ = 0;
};

} // namespace tightkv::tool
