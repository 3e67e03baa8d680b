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

struct SynthOptions {
    std::string    shape = "smollm2-135m", type = "q4_0", output;
    SynthOverrides overrides;
    uint64_t       seed    = 1;
    int            threads = 0;
};
int run_synth(const SynthOptions& o);

// ---- shared

int  thread_count(int asked);          // 0: all cores
void say(const std::string& sentence); // "tightkv: …" on stderr

} // namespace tightkv::tool
