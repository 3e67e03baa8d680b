// Which ISA levels there are here, and which one is used.
#include "cpu/kernel_table.h"

#include <atomic>
#include <cstdlib>
#include <vector>

#if defined(TIGHTKV_NEON)
#include <sys/auxv.h>
#endif

namespace tightkv {

namespace {

#if defined(TIGHTKV_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avxvnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
#elif defined(TIGHTKV_NEON)
bool has_neon() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

std::vector<const KernelTable*> detect() {
    std::vector<const KernelTable*> v{&scalar_kernels()};
#if defined(TIGHTKV_X86)
    if (has_avx2()) v.push_back(&avx2_kernels());
    if (has_avxvnni()) v.push_back(&avxvnni_kernels());
    if (has_avx512vnni()) v.push_back(&avx512vnni_kernels());
    if (has_avx512()) v.push_back(&avx512_kernels());
#elif defined(TIGHTKV_NEON)
    if (has_neon()) v.push_back(&neon_kernels());
#endif
    return v;
}

const std::vector<const KernelTable*>& levels() {
    static const std::vector<const KernelTable*> v = detect();
    return v;
}

std::string level_names() {
    std::string s;
    for (const KernelTable* k : levels()) s += (s.empty() ? "" : ", ") + std::string(k->name);
    return s;
}

const KernelTable* find(std::string_view name) {
    for (const KernelTable* k : levels())
        if (name == k->name) return k;
    return nullptr;
}

const KernelTable* initial() {
    const char* wanted = std::getenv("TIGHTKV_ISA");
    if (wanted && *wanted)
        if (const KernelTable* k = find(wanted)) return k;
    return levels().back();
}

std::atomic<const KernelTable*>& chosen() {
    static std::atomic<const KernelTable*> k{initial()};
    return k;
}

} // namespace

std::span<const KernelTable* const> available_kernels() { return levels(); }

const KernelTable& kernels() { return *chosen().load(std::memory_order_relaxed); }

Status set_isa(std::string_view name) {
    const KernelTable* k = find(name);
    if (!k) return unsupported("ISA level '" + std::string(name) + "' is not available here; there are: " + level_names());
    chosen().store(k, std::memory_order_relaxed);
    return {};
}

std::string isa_complaint() {
    const char* wanted = std::getenv("TIGHTKV_ISA");
    if (!wanted || !*wanted || find(wanted)) return {};
    return "TIGHTKV_ISA='" + std::string(wanted) + "' is not available here; there are: " + level_names() + "; using " + kernels().name;
}

} // namespace tightkv
