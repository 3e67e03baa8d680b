// How the write and read halves of an ISA level meet in one kernel table.
#pragma once
#include "cpu/kernel_table.h"

namespace tightkv {

struct WriteEntries {
    decltype(KernelTable::encode)      encode;
    decltype(KernelTable::encode_rows) encode_rows;
    decltype(KernelTable::decode)      decode;
    decltype(KernelTable::forward)     forward;
    decltype(KernelTable::inverse)     inverse;
    decltype(KernelTable::query)       query;
    decltype(KernelTable::output)      output;
};

extern const WriteEntries avx2_write, avx512_write, neon_write;

} // namespace tightkv
