// A fixed piece of work of one kernel, for counting its instructions under callgrind: unlike times, counts hardly vary from run to run, so
// a slower kernel shows on a busy machine too. Only what tightkv_measured() does is counted (instructions.py).
//   tightkv_instructions ISA FORMAT encode|few_rows|many_rows
//   tightkv_instructions compiler            what the stored counts depend on
#include <cstdio>
#include <cstring>
#include <functional>

#include "contender.h"
#include "cpu/kernel_table.h"
#include "encode_speed.h"
#include "machine.h"

using namespace tightkv;
using namespace tightkv::bench;

extern "C" [[gnu::noipa]] void tightkv_measured(const std::function<void()>& work) { work(); } // its name is all that counts

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "compiler") == 0) return std::puts(compiler().c_str()) < 0;
    const Format* const f    = argc == 4 ? find_format(argv[2]) : nullptr;
    const std::string   what = argc == 4 ? argv[3] : "";
    if (!f || !f->transformed() || (what != "encode" && what != "few_rows" && what != "many_rows"))
        return std::fprintf(stderr, "usage: tightkv_instructions ISA FORMAT encode|few_rows|many_rows\n"), 2;
    if (const Status s = set_isa(argv[1]); !s.ok()) return std::fprintf(stderr, "%s\n", s.message().c_str()), 77;

    constexpr int kHeadDim = 128, kGroup = 4, kKeys = 1024;
    if (what == "encode") {
        EncodeSpeed rows(*f, kHeadDim);
        rows.encode_pass(); // tables that are made at first use
        tightkv_measured([&] { rows.encode_pass(); });
        return 0;
    }
    ThreadTeam          team(1);
    const AttentionData data({kHeadDim, kGroup, 1, what == "few_rows" ? 1 : 16, kKeys});
    const auto          side = make_tightkv(*f, data, 1, team);
    side->attend(0);
    tightkv_measured([&] { side->attend(0); });
    return 0;
}
