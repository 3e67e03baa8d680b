// ISA level "avx2", read path: VPSHUFB looks the codes up, VPMADDUBSW multiplies, one unpack serves all query rows.
#include "cpu/avx2_isa.h"
#include "cpu/isa_entries.h"

namespace tightkv {

const KernelTable& avx2_kernels() {
    static const KernelTable table = {
        "avx2",           avx2_write.encode, avx2_write.encode_rows,  avx2_write.decode,       avx2_write.forward, avx2_write.inverse,
        avx2_write.query, avx2_write.output, Attention<Avx2>::decode, Attention<Avx2>::batched};
    return table;
}

} // namespace tightkv
