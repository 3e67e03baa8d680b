// tightkv_bench: every kernel alone, on data that fits the processor's caches, by ISA level, format and head_dim. For work on a kernel:
// what counts in the end is `tightkv bench`, where the data comes from memory and rivals take turns.
//
//   encode/avx2/turbo4/128    rows through transform and quantiser
//   few_rows/…                attention of one token, 4 query heads on one KV head, over 4096 keys: the decode kernel
//   many_rows/…               of 64 tokens over 1024 keys, causal: the batched kernel
//
// A benchmark that is selected first checks its result (encode: bit for bit against scalar; attention: against the fp64 oracle); one that
// is wrong reports an error instead of a time, and the program fails.
#include <benchmark/benchmark.h>

#include "contender.h"
#include "cpu/kernel_table.h"
#include "encode_speed.h"

using namespace tightkv;
using namespace tightkv::bench;

namespace {

bool all_right = true;

void wrong(benchmark::State& state, const std::string& what) {
    all_right = false;
    state.SkipWithError(what.c_str());
}

bool choose(benchmark::State& state, const char* isa) {
    const Status s = set_isa(isa);
    if (!s.ok()) wrong(state, s.message());
    return s.ok();
}

void encode(benchmark::State& state, const char* isa, const Format& f, int head_dim) {
    if (!choose(state, isa)) return;
    EncodeSpeed rows(f, head_dim);
    if (const std::string complaint = rows.complaint(); !complaint.empty()) return wrong(state, complaint);
    for (auto _ : state) rows.encode_pass();
    state.SetItemsProcessed(state.iterations() * EncodeSpeed::kRows);
    state.SetBytesProcessed(state.iterations() * EncodeSpeed::kRows * head_dim * int64_t{sizeof(float)});
}

void attend(benchmark::State& state, const char* isa, const Format& f, const AttentionShape& shape) {
    if (!choose(state, isa)) return;
    ThreadTeam          team(1);
    const AttentionData data(shape);
    const auto          side = make_tightkv(f, data, 1, team);
    if (const Verdict v = side->check(data); !v.ok)
        return wrong(state,
                     "relative error " + std::to_string(v.max_rel_error) + " against the fp64 oracle, allowed " + std::to_string(v.bound));
    for (auto _ : state) side->attend(0);
    state.SetItemsProcessed(state.iterations() * shape.n_kv); // keys
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(side->layer_bytes));
}

void add_benchmarks() {
    for (const KernelTable* k : available_kernels())
        for (const Format& f : all_formats())
            for (const int d : {64, 128, 256}) {
                const auto add = [&](const char* what, auto run) {
                    const std::string name = std::string(what) + "/" + k->name + "/" + f.name + "/" + std::to_string(d);
                    benchmark::RegisterBenchmark(name.c_str(), run);
                };
                if (f.transformed()) add("encode", [k, &f, d](benchmark::State& s) { encode(s, k->name, f, d); });
                add("few_rows", [k, &f, d](benchmark::State& s) { attend(s, k->name, f, {d, 4, 1, 1, 4096}); });
                add("many_rows", [k, &f, d](benchmark::State& s) { attend(s, k->name, f, {d, 4, 1, 64, 1024}); });
            }
}

} // namespace

int main(int argc, char** argv) {
    add_benchmarks();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    if (benchmark::RunSpecifiedBenchmarks() == 0) return 1;
    benchmark::Shutdown();
    return all_right ? 0 : 1;
}
