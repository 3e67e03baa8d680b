// Level "avxvnni" in the encoding of AVX-VNNI.
#include "cpu/avxvnni_read.h"

namespace tightkv {

const KernelTable& avxvnni_kernels() {
    static const KernelTable table = avxvnni_table();
    return table;
}

} // namespace tightkv
