// Level "avxvnni" in the encoding of AVX512_VNNI with AVX512VL.
#include "cpu/avxvnni_read.h"

namespace tightkv {

const KernelTable& avx512vnni_kernels() {
    static const KernelTable table = avxvnni_table();
    return table;
}

} // namespace tightkv
