// llama.cpp as the tool needs it: models, contexts with a chosen KV cache, logits. The only place that knows llama.h is engine_llama*.cpp.
// Failures throw Failure. One engine a process; not thread-safe.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache_choice.h"
#include "text.h"

struct llama_model;
struct llama_context;

namespace tightkv::tool {

class OutputFile;
class Progress;
class RowObserver; // engine_llama_rows.h
class RowTap;
struct SynthShape;

// ---- the host and the adapter in it

struct EngineOptions {
    std::string adapter;              // file; empty: beside the executable
    bool        need_adapter = true;  // else its absence is no failure
    bool        verbose      = false; // llama.cpp's own messages on stderr
};
struct AdapterCounts {
    int64_t native_writes = 0, native_attention = 0, generic_ops = 0, fallback_ops = 0, refused_rows = 0, cache_bytes = 0;
};

void          start_engine(const EngineOptions& options); // once, before anything below
bool          adapter_loaded();
AdapterCounts adapter_counts();    // zeros without an adapter
std::string   adapter_handshake(); // what it says about this host, or why there is none
std::string   adapter_version();   // of tightkv; "unknown" without an adapter
std::string   host_version();      // of ggml
double        stock_bits_per_value(const std::string& type);

// ---- models

class Model {
public:
    explicit Model(const std::string& path);
    ~Model();

    const std::string&  path() const { return path_; }
    int                 n_ctx_train() const;
    int                 n_vocab() const;
    int                 n_layer() const;
    int                 head_dim_k() const { return head_dim_k_; }
    int                 head_dim_v() const { return head_dim_v_; }
    int                 n_head_kv() const;
    Token               bos() const; // what chunks begin with; -1: this model has none
    std::vector<Token>  tokenize(const std::string& text) const;
    struct llama_model* handle() const {
        return model_.get();
    }
    [[nodiscard]] std::string description() const;

private:
    struct Free {
        void operator()(llama_model* m) const;
    };
    std::string                        path_;
    std::unique_ptr<llama_model, Free> model_;
    int                                head_dim_k_ = 0, head_dim_v_ = 0;
};

// True if any tensor of the GGUF file is quantised; throws where the file cannot be read as GGUF.
bool        is_quantized(const std::string& path);
std::string architecture_of(const std::string& path);
// norm_hash() (cache/profile.h) of these blocks' attn_norm.weight, the same for every quantisation of a model; 0 where there is none.
std::vector<uint64_t> norms_of(const std::string& path, std::span<const int> blocks);
// The blocks that have one, in order.
std::vector<int> norm_blocks_of(const std::string& path);
// Writes the model with all tensors in F32; takes seconds to minutes.
void expand_to_f32(const std::string& from, const std::string& to, int threads);
// Writes a model of random weights, in pieces, and finishes `out`; needs no start_engine(). Returns its bytes. Throws Failure, also when
// the user interrupts it. Same shape, seed and llama.cpp: same bytes, whatever `threads` is.
int64_t write_synth(const SynthShape& shape, uint64_t seed, int threads, OutputFile& out, Progress& progress);

// ---- contexts

struct ContextOptions {
    int  tokens    = 512; // per sequence
    int  sequences = 1;
    bool unified   = false; // all sequences share the cells of one cache: then `tokens` is the size of that
    int  batch     = 512;   // most tokens of one decode()
    int  outputs   = 512;   // most of them with logits
    int  threads   = 1;

    RowObserver* observer = nullptr; // sees the rows of an f16 cache, and may change them; must live as long as the context
};

struct BatchToken {
    Token token;
    int   position;
    int   sequence;
    bool  output; // logits wanted
};

// Throws Failure where the adapter would leave this cache of ours to the host: a head_dim that no format has, a profile of another model.
void require_head_dim(const Model& model, const CacheChoice& cache);

// Throws Failure where the cache's profile cannot be read or is not this model's: of a file before it is loaded or expanded, as far as
// its norms tell, and of a loaded model, whose shape is looked at as well.
void require_profile(const std::string& model, const CacheChoice& cache);
void require_profile(const Model& model, const CacheChoice& cache);

class Context {
public:
    Context(const Model& model, const CacheChoice& cache, const ContextOptions& options);
    ~Context();

    const CacheChoice& cache() const { return cache_; }
    // False when the user interrupted it. Time spent in it adds up in seconds().
    bool                   decode(std::span<const BatchToken> batch);
    std::span<const float> logits(int index) const; // of batch token `index`, until the next decode: [n_vocab]
    double                 seconds() const { return seconds_; }
    // Ops the adapter did natively in decode() of this context; stays 0 for a cache it left to the host.
    int64_t native_attention() const { return native_attention_; }
    int64_t cache_bytes() const { return cache_bytes_; } // of all sequences, packed
    // Of one sequence (unified: of all): the tokens that were asked for, rounded up by llama.cpp to a multiple of 256.
    int64_t cells() const { return cells_per_stream_; }

    double bits_per_value() const; // exact rows are shared out over the cells
    void   set_threads(int threads);

    void                 clear();
    void                 remove(int sequence, int from_position);   // cells of this sequence from there on
    void                 share(int from_sequence, int to_sequence); // unified only: the cells belong to both
    std::vector<uint8_t> save(int sequence);
    void                 restore(int sequence, std::span<const uint8_t> state);
    int                  next_position(int sequence) const;

private:
    struct Free {
        void operator()(llama_context* c) const;
    };
    const Model&                         model_;
    CacheChoice                          cache_;
    std::unique_ptr<RowTap>              tap_; // outlives the context, which calls it
    std::unique_ptr<llama_context, Free> context_;
    int64_t                              cache_bytes_ = 0, native_attention_ = 0;
    int                                  cache_layers_     = 0;
    int64_t                              cells_per_stream_ = 0;
    double                               seconds_          = 0;
};

// How many threads to compute with where the user did not say: all cores, or half of them where that is clearly faster. (llama.cpp's
// threads wait for each other after every operation, spinning: on a machine that also does other things, a thread too many can cost
// a factor of ten.) Tries it out on single tokens; takes about a second.
int pick_threads(const Model& model, int cores);

} // namespace tightkv::tool
