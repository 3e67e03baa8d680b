// ISA level "avx512vnni", read path: VPDPBUSD on 256 bits as AVX512_VNNI and AVX512VL have it.
#define TIGHTKV_DPBUSD _mm256_dpbusd_epi32
#include "cpu/vnni256.h"

namespace tightkv {

const KernelTable& avx512vnni_kernels() {
    static const KernelTable table = vnni256_table("avx512vnni");
    return table;
}

} // namespace tightkv
