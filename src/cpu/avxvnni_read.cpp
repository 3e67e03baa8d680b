// ISA level "avxvnni", read path: VPDPBUSD on 256 bits as AVX-VNNI has it.
#define TIGHTKV_DPBUSD _mm256_dpbusd_avx_epi32
#include "cpu/vnni256.h"

namespace tightkv {

const KernelTable& avxvnni_kernels() {
    static const KernelTable table = vnni256_table("avxvnni");
    return table;
}

} // namespace tightkv
