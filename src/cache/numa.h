// Where the pages of a cache lie on a machine with several memory nodes.
//
// The system puts a page on the node of the thread that touches it first: that is who writes its first row, the caller alone in the C API
// and any thread of the host in the adapter. Who reads it is not fixed: threads take units of work as they come, the host has other
// thread counts for prompts than for single tokens, and threads that are not pinned wander. So a store whose writer may run on several
// nodes has its pages spread evenly over those, and each read has all memory controllers to draw on. A writer that is held to one node
// (numactl, taskset, the host's --numa and --cpu-mask, OMP_PROC_BIND) keeps what it touches, and a memory policy that the user has set
// (numactl) stays as it is. Linux calls alone; what the system refuses is left as it was.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace tightkv {

struct MemoryNode {
    int              id = 0;
    std::vector<int> cpus; // ascending
};

// "0-3,8", as Linux writes sets of processors and nodes, ascending; empty where the text is none.
std::vector<int> parse_id_list(const std::string& text);

// Nodes that have both memory and processors, of a folder like /sys/devices/system/node; empty where there is none.
std::vector<MemoryNode> read_memory_nodes(const std::string& folder);

// Ids of the nodes over which memory is spread that a thread touches first which may run on `cpus`; empty: it stays where it is touched.
std::vector<int> nodes_to_spread_over(const std::vector<MemoryNode>& nodes, const std::vector<int>& cpus);

// Asks for pages of [p, p + bytes) that are not there yet to come from these nodes in turn, huge pages too. p: on a page. False: refused.
bool interleave_pages(void* p, size_t bytes, const std::vector<int>& nodes);

// Of this machine, looked up once. Where it is false nothing of the kind is asked of the system.
bool has_several_memory_nodes();

// What the head of this file says, for the calling thread, which is about to touch these pages first.
void spread_pages(void* p, size_t bytes) noexcept;

} // namespace tightkv
