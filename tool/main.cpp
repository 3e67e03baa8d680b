// tightkv, the command line: options in, exit code out. 0 done, 1 failure, 2 usage, 130 interrupted.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "commands.h"
#include "errors.h"
#include "interrupt.h"
#include "output.h"

namespace tightkv::tool {

int thread_count(int asked) { return asked > 0 ? asked : std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

void say(const std::string& sentence) { fmt::print(stderr, "tightkv: {}\n", sentence); }

namespace {

constexpr const char* kMainHelp = R"(Example:
  tightkv demo
  tightkv run --cache turbo4 -- llama-completion -m model.gguf -p "Once upon a time"

KV-cache compression for llama.cpp: an unmodified llama.cpp keeps its keys and values in 2, 3 or 4 bits.)";

constexpr const char* kInfoHelp = R"(Example:
  tightkv info --head-dim 64,128 --selftest

Formats and their sizes, kernels, and what the adapter says about the llama.cpp it finds.)";

constexpr const char* kRunHelp = R"(Example:
  tightkv run --cache turbo4 -- llama-completion -m model.gguf -p "Once upon a time"
  tightkv run --cache k=turbo4:v=turbo3 --stats -- llama-server -m model.gguf

Runs a program that uses llama.cpp with a compressed KV cache.)";

constexpr const char* kEvalHelp = R"(Example:
  tightkv eval -m default --cache q8_0,q4_0,turbo4,turbo3 --ctx 512 --chunks 4
  tightkv eval -m model.gguf --text book.txt --cache k=turbo4:v=turbo3 --path decode -o json --output result.json

Perplexity, KL divergence and agreement of caches against the f16 cache of the same model, on the same tokens in one process.)";

constexpr const char* kDemoHelp = R"(Example:
  tightkv demo

Memory, quality and speed of six caches on a small model; takes a few minutes and needs no options.)";

constexpr const char* kSynthHelp = R"(Example:
  tightkv synth --shape llama-1b --head-dim 128 --vocab 32000 -o model.gguf

Writes a model of random weights and of any shape, for measurements of speed; any llama.cpp program can load it.)";

struct Options {
    InfoOptions  info;
    RunOptions   run;
    EvalOptions  eval;
    DemoOptions  demo;
    SynthOptions synth;
};

void add_adapter(CLI::App* c, std::string& file) {
    c->add_option("--adapter", file, "libggml-tightkv.so to use (default: the one beside this program)")->type_name("FILE");
}
void add_threads(CLI::App* c, int& threads) {
    c->add_option("--threads,-t", threads, "threads (default: all cores, or half where that is clearly faster)")
        ->check(CLI::Range(1, 1024))
        ->type_name("T");
}

CLI::App* add_info(CLI::App& app, InfoOptions& o) {
    CLI::App* c = app.add_subcommand("info", kInfoHelp);
    c->add_option("--head-dim", o.head_dims, "head dimensions to list sizes for (default: " + o.head_dims + ")")->type_name("LIST");
    c->add_flag("--selftest", o.selftest, "check every kernel level against the scalar reference");
    c->add_option("-o", o.format, "md (default) or json")->type_name("FORMAT");
    add_adapter(c, o.adapter);
    return c;
}

CLI::App* add_run(CLI::App& app, RunOptions& o) {
    CLI::App* c = app.add_subcommand("run", kRunHelp);
    c->add_option("--cache", o.cache, "cache specification, for example turbo4 or k=turbo4:v=turbo3")->type_name("SPEC")->required();
    c->add_flag("--stats", o.stats, "print the adapter's counters when the program ends");
    add_adapter(c, o.adapter);
    c->footer("Then -- and the program with its arguments.");
    return c;
}

CLI::App* add_eval(CLI::App& app, EvalOptions& o) {
    CLI::App* c = app.add_subcommand("eval", kEvalHelp);
    c->add_option("-m,--model", o.model, "GGUF file, or 'default' (the default)")->type_name("MODEL");
    c->add_option("--text", o.text, "text file (default: the one that comes with tightkv)")->type_name("FILE");
    c->add_option("--cache", o.caches,
                  "caches to compare with f16: of llama.cpp (q8_0, q5_0, q4_0, …) or ours (turbo4, k=turbo4:v=turbo3, …)")
        ->type_name("LIST")
        ->required();
    c->add_option("--ctx", o.ctx, "tokens per chunk (default: 512)")->check(CLI::Range(8, 1 << 20))->type_name("N");
    c->add_option("--chunks", o.chunks, "chunks of the text (default: 4)")->check(CLI::Range(1, 1 << 20))->type_name("K");
    c->add_option("--path", o.paths, "batched, decode or both (default: batched,decode)")->type_name("LIST");
    add_threads(c, o.threads);
    c->add_option("-o", o.format, "md (default), csv, json or jsonl")->type_name("FORMAT");
    c->add_option("--output", o.output, "write there instead of to standard output")->type_name("FILE");
    c->add_flag("!--no-expand", o.expand, "measure with quantised weights as they are, not expanded to F32");
    add_adapter(c, o.adapter);
    c->add_flag("--verbose", o.verbose, "show llama.cpp's own messages");
    return c;
}

CLI::App* add_demo(CLI::App& app, DemoOptions& o) {
    CLI::App* c = app.add_subcommand("demo", kDemoHelp);
    c->add_option("-o,--output", o.output, "where the figures are saved as JSON (default: " + o.output + ")")->type_name("FILE.json");
    c->add_option("--text", o.text, "text file (default: the one that comes with tightkv)")->type_name("FILE");
    c->add_option("-m,--model", o.model, "GGUF file, or 'default' (the default)")->type_name("MODEL");
    add_threads(c, o.threads);
    add_adapter(c, o.adapter);
    c->add_flag("--verbose", o.verbose, "show llama.cpp's own messages");
    return c;
}

CLI::App* add_synth(CLI::App& app, SynthOptions& o) {
    CLI::App*   c = app.add_subcommand("synth", kSynthHelp);
    std::string shapes, types;
    for (const SynthPreset& p : synth_presets()) shapes += fmt::format("\n  {:<14}{}", p.name, as_options(p.shape));
    for (const SynthType& t : synth_types()) types += fmt::format("{}{}", types.empty() ? "" : ", ", t.name);
    c->add_option("-o,--output", o.output, "the file to write; it appears when it is complete")->type_name("FILE.gguf")->required();
    c->add_option("--shape", o.shape, "what is not given below, see the list at the end (default: " + o.shape + ")")->type_name("NAME");
    for (size_t i = 0; i < kSynthFields.size(); i++) {
        const SynthField& f = kSynthFields[i];
        c->add_option(f.option, o.overrides[i], fmt::format("{}; {} to {}", f.meaning, f.min, f.max))->type_name("N");
    }
    c->add_option("--type", o.type, fmt::format("type of the matrices: {} (default: {})", types, o.type))->type_name("TYPE");
    c->add_option("--seed", o.seed, fmt::format("same seed, same weights (default: {})", o.seed))
        ->check(CLI::NonNegativeNumber)
        ->type_name("N");
    c->add_option("--threads,-t", o.threads, "threads (default: all cores)")->check(CLI::Range(1, 1024))->type_name("T");
    c->footer("Shapes, as the options they stand for:" + shapes);
    return c;
}

// In the list of commands: the sentence alone, without the example before it.
class ShortList : public CLI::Formatter {
public:
    std::string make_subcommand(const CLI::App* sub) const override {
        const std::string text = sub->get_description();
        const size_t      at   = text.rfind("\n\n");
        return fmt::format("  {:<10}{}\n", sub->get_name(), at == std::string::npos ? text : text.substr(at + 2));
    }
};

int dispatch(int argc, char** argv) {
    Options   o;
    CLI::App  app(kMainHelp, "tightkv");
    CLI::App* info  = add_info(app, o.info);
    CLI::App* run   = add_run(app, o.run);
    CLI::App* eval  = add_eval(app, o.eval);
    CLI::App* demo  = add_demo(app, o.demo);
    CLI::App* synth = add_synth(app, o.synth);
    app.set_version_flag("--version", std::string(TIGHTKV_VERSION));
    app.require_subcommand(1);
    app.formatter(std::make_shared<ShortList>());

    if (const auto known = app.get_subcommands({});
        argc > 1 && argv[1][0] != '-' &&
        std::none_of(known.begin(), known.end(), [&](const CLI::App* c) { return c->get_name() == argv[1]; }))
        throw usage_error(fmt::format("unknown command '{}'; accepted: info, run, eval, demo, synth", argv[1]));
    // What stands behind '--' belongs to the program that is run, whatever it looks like.
    if (argc > 1 && std::strcmp(argv[1], "run") == 0) {
        char** const end = argv + argc;
        char** const cut = std::find_if(argv + 1, end, [](const char* a) { return std::strcmp(a, "--") == 0; });
        if (cut != end) o.run.command.assign(cut + 1, end);
        argc = static_cast<int>(cut - argv);
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& e) { // --help, --version
        return app.exit(e);
    } catch (const CLI::ParseError& e) {
        std::string command = "tightkv";
        for (const CLI::App* c : {info, run, eval, demo, synth})
            if (c->parsed()) command += " " + c->get_name();
        std::string what = e.what();
        std::replace(what.begin(), what.end(), '\n', ' ');
        throw usage_error(fmt::format("{}; '{} --help' shows what is accepted", what, command));
    }
    if (*info) return run_info(o.info);
    if (*run) return run_run(o.run);
    install_interrupt_handler();
    if (*synth) return run_synth(o.synth);
    return *eval ? run_eval(o.eval) : run_demo(o.demo);
}

} // namespace

} // namespace tightkv::tool

int main(int argc, char** argv) {
    using namespace tightkv::tool;
    try {
        return dispatch(argc, argv);
    } catch (const Failure& f) {
        say(f.what());
        return f.exit_code;
    } catch (const std::bad_alloc&) {
        say("out of memory");
    } catch (const std::exception& e) {
        say(e.what());
    }
    return kExitFailure;
}
