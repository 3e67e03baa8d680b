// tightkv synth: a model of random weights, for measurements of speed.
#include <fmt/format.h>

#include "commands.h"
#include "engine_llama.h"
#include "errors.h"
#include "output.h"
#include "progress.h"
#include "synth_model.h"

namespace tightkv::tool {

int run_synth(const SynthOptions& o) {
    const SynthShape shape = make_shape(o.shape, o.overrides, o.type);
    if (o.output.empty()) throw usage_error("-o '' names no file; accepted: the GGUF file to write");
    OutputFile out(o.output);
    double     bytes = 0;
    {
        Progress progress(static_cast<double>(synth_parameters(shape)));
        progress.stage(o.output);
        bytes = static_cast<double>(write_synth(shape, o.seed, thread_count(o.threads), out, progress));
    }
    say(fmt::format("wrote {}: {}, {:.1f} M parameters, {}, {:.1f} MiB; random weights, for speed only", o.output,
                    synth_architecture(shape), static_cast<double>(synth_parameters(shape)) / 1e6, shape.type, bytes / (1 << 20)));
    return 0;
}

} // namespace tightkv::tool
