// Memory for measuring: 2 MiB pages where the system gives them. With 4 KiB pages a long cache costs a TLB miss per row, and the rival
// with the larger rows pays more for it: a fair comparison has huge pages on every side, and says so.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tightkv::bench {

class HugeBuffer {
public:
    explicit HugeBuffer(size_t bytes); // zeros, aligned to 2 MiB; throws std::bad_alloc
    ~HugeBuffer();
    HugeBuffer(const HugeBuffer&)            = delete;
    HugeBuffer& operator=(const HugeBuffer&) = delete;

    uint8_t* data() const { return data_; }
    size_t   size() const { return size_; }

private:
    void*    map_    = nullptr;
    size_t   mapped_ = 0, size_ = 0;
    uint8_t* data_ = nullptr;
};

// Share of the resident memory of these mappings that lies in huge pages, in [0, 1]; what the kernel says in /proc/self/smaps.
double huge_share(const void* p, size_t bytes);

} // namespace tightkv::bench
