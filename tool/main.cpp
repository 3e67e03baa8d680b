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
#include <fmt/ranges.h>

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
  tightkv info model.tkv

Formats and their sizes, kernels, what the adapter says about the llama.cpp it finds, and what is in the cache folder; or what a profile
holds.)";

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

Memory, quality and speed of eight caches on a small model; takes a few minutes and needs no options.)";

constexpr const char* kCalibrateHelp = R"(Example:
  tightkv calibrate -m default -o default.tkv
  tightkv calibrate -m model.gguf --text prose.txt --tokens 4096 --target-ctx 8192 -o model.tkv
  tightkv calibrate -m model.gguf --budget 3.25 -o model.tkv

Learns from a text what the keys, values and queries of a model are like, for caches with profile=FILE.tkv.)";

constexpr const char* kSynthHelp = R"(Example:
  tightkv synth --shape llama-1b --head-dim 128 --vocab 32000 -o model.gguf

Writes a model of random weights and of any shape, for measurements of speed; any llama.cpp program can load it.)";

constexpr const char* kBenchHelp = R"(Example:
  tightkv bench attention --format turbo4,turbo3 --depth 2048,32768

Speed of the attention operator, of the encoder and of whole models, against rivals in alternating rounds of one process.)";

constexpr const char* kBenchAttentionHelp = R"(Example:
  tightkv bench attention --format turbo4,turbo3,turbo2 --depth 2048,32768 --against llama:f16,llama:q8_0,llama:q4_0,own:f16
  tightkv bench attention --format turbo4 --depth 0,8192 --tokens 512 --against llama:f16,own:f32 -o json

One attention operation: nanoseconds per cached token and layer, and how many times longer rivals take.)";

constexpr const char* kBenchEncodeHelp = R"(Example:
  tightkv bench encode --format turbo4,turbo3 --head-dim 64,128

Rows encoded on one core, after the encoder was compared with the scalar reference bit for bit.)";

constexpr const char* kBenchModelHelp = R"(Example:
  tightkv bench model -m default --cache f16,q8_0,turbo4 --depth 0,8192 -o json
  tightkv bench model -m model.gguf --cache f16,turbo3 --depth 2048,32768 -p 512 -n 32 -r 5 -t 8

Prefill and decode speed of a whole model on top of a filled cache.)";

struct Options {
    InfoOptions           info;
    RunOptions            run;
    EvalOptions           eval;
    DemoOptions           demo;
    CalibrateOptions      calibrate;
    SynthOptions          synth;
    BenchAttentionOptions bench_attention;
    BenchEncodeOptions    bench_encode;
    BenchModelOptions     bench_model;
    AttentionRivalOptions attention_rival;
    ModelRivalOptions     model_rival;
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
    c->add_option("PROFILE", o.profile, "a file that tightkv calibrate wrote")->type_name("FILE.tkv");
    c->add_option("--head-dim", o.head_dims, "head dimensions to list sizes for (default: " + o.head_dims + ")")->type_name("LIST");
    c->add_flag("--selftest", o.selftest, "check every kernel level against the scalar reference");
    c->add_option("-o", o.format, "md (default) or json")->type_name("FORMAT");
    add_adapter(c, o.adapter);
    return c;
}

// What stands behind '--' is no option that CLI11 knows of.
class RunFormatter : public CLI::Formatter {
public:
    std::string make_usage(const CLI::App*, std::string name) const override {
        return fmt::format("Usage: {} [OPTIONS] -- PROGRAM [ARGUMENTS]\n", name);
    }
};

CLI::App* add_run(CLI::App& app, RunOptions& o) {
    CLI::App* c = app.add_subcommand("run", kRunHelp);
    c->add_option("--cache", o.cache, "cache specification, for example turbo4 or k=turbo4:v=turbo3")->type_name("SPEC")->required();
    c->add_flag("--stats", o.stats, "print the adapter's counters when the program ends");
    add_adapter(c, o.adapter);
    c->formatter(std::make_shared<RunFormatter>());
    return c;
}

CLI::App* add_eval(CLI::App& app, EvalOptions& o) {
    CLI::App* c = app.add_subcommand("eval", kEvalHelp);
    c->add_option("-m,--model", o.model, "GGUF file, or 'default' (the default)")->type_name("MODEL");
    c->add_option("--text", o.text, "text file (default: the one that comes with tightkv)")->type_name("FILE");
    c->add_option("--cache", o.caches,
                  "caches to compare with f16: of llama.cpp (q8_0, q5_0, q4_0, …) or ours (turbo4, k=turbo4:v=turbo3, …), or lab:METHOD "
                  "(docs/lab.md)")
        ->type_name("LIST")
        ->required();
    c->add_option("--ctx", o.ctx, "tokens per chunk (default: 512); the cache, and so bits/value, has the next multiple of 256 cells")
        ->check(CLI::Range(8, 1 << 20))
        ->type_name("N");
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

CLI::App* add_calibrate(CLI::App& app, CalibrateOptions& o) {
    CLI::App* c = app.add_subcommand("calibrate", kCalibrateHelp);
    c->add_option("-m,--model", o.model, "GGUF file, or 'default' (the default)")->type_name("MODEL");
    c->add_option("--text", o.text, "text file, not one to be measured with later (default: the one that comes with tightkv)")
        ->type_name("FILE");
    c->add_option("-o,--output", o.output, "the profile to write; it appears when it is complete")->type_name("FILE.tkv")->required();
    c->add_option("--tokens", o.tokens, fmt::format("tokens of the text (default: {})", o.tokens))
        ->check(CLI::Range(1024, 1 << 24))
        ->type_name("N");
    c->add_option("--target-ctx", o.target_ctx,
                  "positions that the cache will be used at (default: 2048, or what the model was trained for)")
        ->check(CLI::Range(1, 1 << 30))
        ->type_name("N");
    c->add_option("--budget", o.budget, "also choose a format for every layer, for K and for V, within so many bits per value on average")
        ->check(CLI::Range(1.0, 16.0))
        ->type_name("BITS");
    add_threads(c, o.threads);
    c->add_flag("!--no-expand", o.expand, "calibrate with quantised weights as they are, not expanded to F32");
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

void add_results(CLI::App* c, std::string& format, std::string& output) {
    c->add_option("-o", format, "md (default), csv, json or jsonl")->type_name("FORMAT");
    c->add_option("--output", output, "write there instead of to standard output")->type_name("FILE");
}
void add_isa(CLI::App* c, std::string& isa) {
    c->add_option("--isa", isa, "kernels to use (default: the best of this processor)")->type_name("NAME");
}
void add_count(CLI::App* c, const char* name, int& n, int most, const std::string& what) {
    c->add_option(name, n, fmt::format("{} (default: {})", what, n))->check(CLI::Range(1, most))->type_name("N");
}

CLI::App* add_bench_attention(CLI::App* bench, BenchAttentionOptions& o) {
    CLI::App* c = bench->add_subcommand("attention", kBenchAttentionHelp);
    c->add_option("--format", o.formats, "formats of K and V (default: " + o.formats + ")")->type_name("LIST");
    c->add_option("--depth", o.depths,
                  "cached tokens (default: " + o.depths + "); with one query token its own is among them, with more theirs come on top")
        ->type_name("LIST");
    c->add_option("--head-dim", o.head_dim, fmt::format("head dimension (default: {})", o.head_dim))->type_name("D");
    add_count(c, "--q-heads", o.q_heads, 1024, "query heads");
    add_count(c, "--kv-heads", o.kv_heads, 1024, "KV heads");
    add_count(c, "--tokens", o.tokens, 1 << 16, "query tokens, causal");
    add_count(c, "--threads,-t", o.threads, 1024, "threads");
    add_count(c, "--rounds,-r", o.rounds, 10000, "rounds, of which the median counts");
    c->add_option(
         "--memory", o.memory_mib,
         "caches that each side goes through in turn, in MiB (default: four times the last cache, so that every read is from memory)")
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("MIB");
    c->add_option(
         "--against", o.against,
         "rivals: llama:TYPE, llama.cpp's operator on that type; own:f16 and own:f32, our kernels on plain f16 rows; none (default: "
         "llama:f16,llama:q8_0,llama:q4_0,own:f16)")
        ->type_name("LIST");
    c->add_option("--rival", o.rivals, "libggml.so of a fork, measured in a process of its own; rivals NAME:TYPE in --against")
        ->type_name("NAME=DIR");
    add_isa(c, o.isa);
    add_results(c, o.format, o.output);
    return c;
}

CLI::App* add_attention_rival(CLI::App* bench, AttentionRivalOptions& o) {
    CLI::App* c = bench->add_subcommand("attention-rival", "the process of --rival");
    c->group(""); // not listed
    c->add_option("--library", o.library)->required();
    c->add_option("--name", o.name)->required();
    c->add_option("--type", o.type)->required();
    c->add_option("--head-dim", o.head_dim)->required();
    c->add_option("--q-heads", o.q_heads)->required();
    c->add_option("--kv-heads", o.kv_heads)->required();
    c->add_option("--tokens", o.tokens)->required();
    c->add_option("--n-kv", o.n_kv)->required();
    c->add_option("--threads", o.threads)->required();
    c->add_option("--bytes", o.bytes)->required();
    return c;
}

CLI::App* add_bench_encode(CLI::App* bench, BenchEncodeOptions& o) {
    CLI::App* c = bench->add_subcommand("encode", kBenchEncodeHelp);
    c->add_option("--format", o.formats, "formats (default: " + o.formats + ")")->type_name("LIST");
    c->add_option("--head-dim", o.head_dims, "head dimensions (default: " + o.head_dims + ")")->type_name("LIST");
    c->add_option("--transform", o.transforms, "hadamard, or dense as a profile has it, with a mean (default: " + o.transforms + ")")
        ->type_name("LIST");
    add_count(c, "--rounds,-r", o.rounds, 10000, "rounds, of which the median counts");
    add_isa(c, o.isa);
    add_results(c, o.format, o.output);
    return c;
}

CLI::App* add_bench_model(CLI::App* bench, BenchModelOptions& o) {
    CLI::App* c = bench->add_subcommand("model", kBenchModelHelp);
    c->add_option("-m,--model", o.model, "GGUF file, or 'default' (the default)")->type_name("MODEL");
    c->add_option("--cache", o.caches, "caches, of llama.cpp or ours (default: " + o.caches + ")")->type_name("LIST");
    c->add_option("--depth", o.depths, "cached tokens before those that are timed, multiples of 512 (default: " + o.depths + ")")
        ->type_name("LIST");
    add_count(c, "-p", o.prefill_tokens, 1 << 16, "tokens of a prefill");
    add_count(c, "-n", o.decode_tokens, 1 << 16, "tokens decoded one by one");
    add_count(c, "-r,--rounds", o.rounds, 10000, "rounds, of which the median counts");
    c->add_option("--rival", o.rivals, "libllama.so of ik_llama.cpp, measured in a process of its own; caches NAME:TYPE in --cache")
        ->type_name("NAME=DIR");
    add_threads(c, o.threads);
    add_results(c, o.format, o.output);
    add_adapter(c, o.adapter);
    c->add_flag("--verbose", o.verbose, "show llama.cpp's own messages");
    return c;
}

CLI::App* add_model_rival(CLI::App* bench, ModelRivalOptions& o) {
    CLI::App* c = bench->add_subcommand("model-rival", "the process of --rival");
    c->group(""); // not listed
    c->add_option("--library", o.library)->required();
    c->add_option("--name", o.name)->required();
    c->add_option("--type", o.type)->required();
    c->add_option("--model", o.model)->required();
    c->add_option("--cells", o.cells)->required();
    c->add_option("--sequences", o.sequences)->required();
    c->add_option("--batch", o.batch)->required();
    c->add_option("--threads", o.threads)->required();
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

// The sentence of a refused command line. A misspelt option is named before a required one that is missing: it may be that one.
std::string parse_complaint(const CLI::App& app, const CLI::ParseError& e) {
    std::string what = e.what();
    if (const auto unknown = app.remaining(true); dynamic_cast<const CLI::RequiredError*>(&e) && !unknown.empty())
        what = fmt::format("not expected: {}; {}", fmt::join(unknown, " "), what);
    std::replace(what.begin(), what.end(), '\n', ' ');
    return what;
}

void check_command(const CLI::App& app, int argc, char** argv, int at, const char* accepted) {
    if (argc <= at) throw usage_error(fmt::format("a subcommand is missing; accepted: {}", accepted));
    if (argv[at][0] == '-') return;
    const auto known = app.get_subcommands({});
    if (std::none_of(known.begin(), known.end(), [&](const CLI::App* c) { return c->get_name() == argv[at]; }))
        throw usage_error(fmt::format("unknown command '{}'; accepted: {}", argv[at], accepted));
}

// `tightkv run` without '--': the first word that is no option of ours is the program. Its own options would be taken for ours.
void check_separator(const CLI::App& run, int argc, char** argv) {
    for (int i = 2; i < argc; i++) {
        if (argv[i][0] != '-')
            throw usage_error(
                fmt::format("'--' is missing before the program: tightkv run --cache SPEC -- {}{}", argv[i], i + 1 < argc ? " …" : ""));
        const CLI::Option* option = run.get_option_no_throw(argv[i]); // null for --name=value, too
        if (option && option->get_items_expected_min() > 0) i++;
    }
}

int dispatch(int argc, char** argv) {
    Options   o;
    CLI::App  app(kMainHelp, "tightkv");
    CLI::App* info      = add_info(app, o.info);
    CLI::App* run       = add_run(app, o.run);
    CLI::App* eval      = add_eval(app, o.eval);
    CLI::App* demo      = add_demo(app, o.demo);
    CLI::App* calibrate = add_calibrate(app, o.calibrate);
    CLI::App* synth     = add_synth(app, o.synth);
    app.formatter(std::make_shared<ShortList>()); // bench, which has commands too, takes it over
    CLI::App* bench = app.add_subcommand("bench", kBenchHelp);
    bench->require_subcommand(1);
    CLI::App* attention = add_bench_attention(bench, o.bench_attention);
    CLI::App* rival     = add_attention_rival(bench, o.attention_rival);
    CLI::App* encode    = add_bench_encode(bench, o.bench_encode);
    CLI::App* model     = add_bench_model(bench, o.bench_model);
    CLI::App* ik        = add_model_rival(bench, o.model_rival);
    app.set_version_flag("--version", std::string(TIGHTKV_VERSION));
    app.require_subcommand(1);

    check_command(app, argc, argv, 1, "info, run, eval, demo, calibrate, synth, bench");
    if (argc > 1 && std::strcmp(argv[1], "bench") == 0) check_command(*bench, argc, argv, 2, "attention, encode, model");
    // What stands behind '--' belongs to the program that is run, whatever it looks like.
    if (argc > 1 && std::strcmp(argv[1], "run") == 0) {
        char** const end = argv + argc;
        char** const cut = std::find_if(argv + 1, end, [](const char* a) { return std::strcmp(a, "--") == 0; });
        if (cut != end) o.run.command.assign(cut + 1, end);
        else check_separator(*run, argc, argv);
        argc = static_cast<int>(cut - argv);
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& e) { // --help, --version
        return app.exit(e);
    } catch (const CLI::ParseError& e) {
        std::string command = "tightkv";
        for (const CLI::App* c : {info, run, eval, demo, calibrate, synth, bench, attention, encode, model})
            if (c->parsed()) command += " " + c->get_name();
        throw usage_error(fmt::format("{}; '{} --help' shows what is accepted", parse_complaint(app, e), command));
    }
    if (*info) return run_info(o.info);
    if (*run) return run_run(o.run);
    if (*rival) return run_attention_rival(o.attention_rival);
    if (*ik) return run_model_rival(o.model_rival);
    install_interrupt_handler();
    if (*calibrate) return run_calibrate(o.calibrate);
    if (*synth) return run_synth(o.synth);
    if (*attention) return run_bench_attention(o.bench_attention);
    if (*encode) return run_bench_encode(o.bench_encode);
    if (*model) return run_bench_model(o.bench_model);
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
