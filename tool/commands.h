// The commands: what the command line says, and what each one does. They throw Failure, or return the exit code.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "synth_shape.h"

namespace tightkv::tool {

struct InfoOptions {
    std::string head_dims = "64,96,128,256";
    bool        selftest  = false;
    std::string format    = "md"; // or json
    std::string adapter;
    std::string profile; // tell about this file instead
};
int run_info(const InfoOptions& o);

struct RunOptions {
    std::string              cache;
    bool                     stats = false;
    std::string              adapter;
    std::vector<std::string> command; // program and its arguments
};
int run_run(const RunOptions& o); // does not return where the program could be started

struct EvalOptions {
    std::string model = "default", text, caches, paths = "batched,decode", format = "md", output, adapter;
    int         ctx = 512, chunks = 4, threads = 0; // 0: all cores
    bool        expand = true, verbose = false;
};
int run_eval(const EvalOptions& o);

struct DemoOptions {
    std::string model = "default", text, output = "tightkv-demo.json", adapter;
    int         threads = 0;
    bool        verbose = false;
};
int run_demo(const DemoOptions& o);

inline constexpr int kCalibrationTokens = 16384;

struct CalibrateOptions {
    std::string model      = "default", text, output;
    int         tokens     = kCalibrationTokens;
    int         target_ctx = 0, threads = 0; // target_ctx 0: 2048, or what the model was trained for where that is less
    double      budget = 0;                  // bits per value; 0: formats are left to the specification
    bool        expand = true, verbose = false;
};
int run_calibrate(const CalibrateOptions& o);

struct SynthOptions {
    std::string    shape = "smollm2-135m", type = "q4_0", output;
    SynthOverrides overrides;
    uint64_t       seed    = 1;
    int            threads = 0;
};
int run_synth(const SynthOptions& o);

struct BenchAttentionOptions {
    std::string              formats = "turbo4,turbo3,turbo2", depths = "2048,8192,32768", isa;
    std::string              against; // rivals; empty: the usual ones that this processor has
    std::vector<std::string> rivals;  // NAME=FOLDER
    int                      head_dim = 128, q_heads = 32, kv_heads = 8, tokens = 1, threads = 1, rounds = 5;
    int                      memory_mib = 0; // that each side goes through; 0: four times the last cache
    std::string              format     = "md", output;
};
int run_bench_attention(const BenchAttentionOptions& o);

struct AttentionRivalOptions { // what `bench attention` starts for the library of a rival
    std::string library, name, type;
    int         head_dim = 0, q_heads = 0, kv_heads = 0, tokens = 0, threads = 0;
    int64_t     n_kv  = 0;
    double      bytes = 0;
};
int run_attention_rival(const AttentionRivalOptions& o);

struct BenchEncodeOptions {
    std::string formats = "turbo8,turbo4,turbo3,turbo2", head_dims = "128", transforms = "hadamard", isa, format = "md", output;
    int         rounds = 5;
};
int run_bench_encode(const BenchEncodeOptions& o);

struct BenchModelOptions {
    std::string model = "default", caches = "f16,q8_0,q4_0,turbo4,turbo3,turbo2", depths = "0,2048,8192", format = "md", output, adapter;
    int         prefill_tokens = 512, decode_tokens = 16, rounds = 3, threads = 0;
    bool        verbose = false;

    std::vector<std::string> rivals; // NAME=FOLDER
};
int run_bench_model(const BenchModelOptions& o);

struct ModelRivalOptions { // what `bench model` starts for the libraries of a rival
    std::string library, name, type, model;
    int         cells = 0, sequences = 0, batch = 0, threads = 0;
};
int run_model_rival(const ModelRivalOptions& o);

// ---- shared

int  thread_count(int asked);          // 0: all cores
void say(const std::string& sentence); // "tightkv: …" on stderr

} // namespace tightkv::tool
