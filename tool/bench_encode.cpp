// tightkv bench encode: speed of the write path.
#include <fmt/format.h>

#include "bench/encode_speed.h"
#include "bench/rounds.h"
#include "bench_about.h"
#include "commands.h"
#include "errors.h"
#include "interrupt.h"
#include "number_list.h"
#include "output.h"
#include "progress.h"

namespace tightkv::tool {

namespace {

constexpr double kLeastSeconds = 0.02;

const std::vector<Column> kColumns = {{"format", "format", ""},
                                      {"head_dim", "head_dim", ""},
                                      {"transform", "transform", ""},
                                      {"isa", "kernels", ""},
                                      {"gb_per_s", "GB/s f32", "{:.2f}"},
                                      {"spread", "spread", "{:.3f}"},
                                      {"rows_per_s", "rows/s", "{:.3e}"},
                                      {"us_per_row", "µs/row", "{:.3f}"},
                                      {"write_k_gb_per_s", "GB/s with packing, K", "{:.2f}"},
                                      {"write_v_gb_per_s", "V", "{:.2f}"}};

Json measure(const Format& f, int head_dim, const std::string& transform, int rounds, Progress& progress) {
    bench::EncodeSpeed speed(f, head_dim, transform == "dense");
    if (const std::string wrong = speed.complaint(); !wrong.empty()) throw failure(wrong);
    std::vector<double> encode, write_k, write_v; // seconds per row
    for (int i = 0; i < rounds && !interrupted(); i++) {
        encode.push_back(speed.encode(kLeastSeconds));
        write_k.push_back(speed.write(Operand::K, kLeastSeconds));
        write_v.push_back(speed.write(Operand::V, kLeastSeconds));
        progress.advance(1);
    }
    if (encode.empty()) return {};
    const auto gb_per_s = [&](const std::vector<double>& s) { return 4e-9 * head_dim / bench::median(s); };
    return {{"format", f.name},
            {"head_dim", head_dim},
            {"transform", transform},
            {"isa", kernels().name},
            {"rows_per_s", 1 / bench::median(encode)},
            {"us_per_row", 1e6 * bench::median(encode)},
            {"gb_per_s", gb_per_s(encode)},
            {"spread", bench::spread(encode)},
            {"write_k_gb_per_s", gb_per_s(write_k)},
            {"write_v_gb_per_s", gb_per_s(write_v)},
            {"exact", true},
            {"checked_rows", bench::EncodeSpeed::kRows}};
}

} // namespace

int run_bench_encode(const BenchEncodeOptions& o) {
    const TableFormat        format = parse_table_format(o.format);
    std::vector<std::string> accepted;
    for (const Format& f : all_formats())
        if (f.transformed()) accepted.push_back(f.name);
    const std::vector<std::string> names      = parse_names(o.formats, "format", accepted);
    const std::vector<int>         dims       = parse_numbers(o.head_dims, "--head-dim", kMinHeadDim, kMaxHeadDim, 32);
    const std::vector<std::string> transforms = parse_names(o.transforms, "transform", {"hadamard", "dense"});
    choose_isa(o.isa);
    OutputFile        out(o.output);
    std::vector<Json> rows;
    {
        Progress progress(static_cast<double>(names.size() * dims.size() * transforms.size()) * o.rounds);
        for (const std::string& name : names) {
            progress.stage(name);
            for (const int d : dims)
                for (const std::string& transform : transforms)
                    if (Json row = interrupted() ? Json() : measure(*find_format(name), d, transform, o.rounds, progress); !row.is_null())
                        rows.push_back(std::move(row));
        }
    }
    Json about      = bench_about();
    about["rounds"] = o.rounds;
    if (interrupted()) about["interrupted"] = true;
    out.write(write_table(format, kColumns, rows, about));
    return interrupted() ? kExitInterrupted : 0;
}

} // namespace tightkv::tool
