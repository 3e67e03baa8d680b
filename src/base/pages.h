// Whole pages of memory that become zero again without being written.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace tightkv {

// Whether MADV_DONTNEED zeroes private anonymous pages, as madvise(2) says. Emulators of user programs may take it for a mere hint, report
// success and do nothing: QEMU before 7.1, which Ubuntu 22.04 has.
inline bool kernel_drops_pages() {
    static const bool drops = [] {
        const auto  page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        void* const p    = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return false;
        volatile char* const byte = static_cast<char*>(p);
        *byte                     = 1;
        const bool zero           = madvise(p, page, MADV_DONTNEED) == 0 && *byte == 0;
        munmap(p, page);
        return zero;
    }();
    return drops;
}

// Zeroes a range that begins on a page of a private, anonymous, writable mapping, to the end of its last page, and gives the memory back
// where that is possible. Not while others read or write there.
inline void zero_pages(void* begin, size_t bytes) {
    if (kernel_drops_pages()) {
        if (madvise(begin, bytes, MADV_DONTNEED) == 0) return; // locked pages cannot be given back
    } else if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == begin) {
        return; // new pages in the old ones' place; advice for the old ones is gone
    }
    std::memset(begin, 0, bytes);
}

} // namespace tightkv
