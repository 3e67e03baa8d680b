// Read bandwidth of memory as these threads get it: the ceiling of a kernel that reads each byte once.
#pragma once
#include "huge_buffer.h"
#include "thread_team.h"

namespace tightkv::bench {

class ReadBandwidth {
public:
    ReadBandwidth(size_t bytes, ThreadTeam& team); // bytes: several times the last cache
    double            gb_per_s();                  // 1e9 bytes per second, of one pass
    const HugeBuffer& buffer() const { return buffer_; }

private:
    HugeBuffer  buffer_;
    ThreadTeam& team_;
};

} // namespace tightkv::bench
