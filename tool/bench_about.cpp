#include "bench_about.h"

#include "bench/machine.h"
#include "cpu/kernel_table.h"
#include "engine_llama.h"
#include "errors.h"

namespace tightkv::tool {

Json bench_about() {
    return {{"version", TIGHTKV_VERSION},
            {"cpu", bench::cpu_model()},
            {"compiler", bench::compiler()},
            {"host_version", host_version()},
            {"last_cache_mib", static_cast<double>(bench::last_cache_bytes()) / (1 << 20)}};
}

void choose_isa(const std::string& name) {
    if (const std::string complaint = isa_complaint(); name.empty() && !complaint.empty()) throw usage_error(complaint);
    if (name.empty()) return;
    if (const Status s = set_isa(name); !s.ok()) throw usage_error(s.message());
}

} // namespace tightkv::tool
