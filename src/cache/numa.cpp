// Memory nodes, and the two system calls on policies of memory that glibc has no functions for.
#include "cache/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <exception>
#include <fstream>

namespace tightkv {

namespace {

constexpr int kMaxId    = 1 << 16; // of a processor or node
constexpr int kWordBits = sizeof(unsigned long) * CHAR_BIT;

std::string first_line(const std::string& file) {
    std::ifstream in(file);
    std::string   line;
    std::getline(in, line);
    return line;
}

const std::vector<MemoryNode>& memory_nodes() {
    static const std::vector<MemoryNode> nodes = read_memory_nodes("/sys/devices/system/node");
    return nodes;
}

// Processors that the calling thread may run on; empty where the system does not say.
std::vector<int> allowed_cpus() {
    constexpr int    kCpus = 8192; // Linux has no more
    unsigned long    mask[kCpus / kWordBits]{};
    std::vector<int> cpus;
    if (syscall(SYS_sched_getaffinity, 0, sizeof mask, mask) < 0) return cpus;
    for (int i = 0; i < kCpus; i++)
        if (mask[i / kWordBits] >> i % kWordBits & 1) cpus.push_back(i);
    return cpus;
}

// Of the calling thread, and so of its process: set by numactl or by the program. Also where the system will not say: then it will not let
// us set one either.
bool has_own_policy() {
    int mode = MPOL_DEFAULT;
    return syscall(SYS_get_mempolicy, &mode, nullptr, 0UL, nullptr, 0UL) != 0 || mode != MPOL_DEFAULT;
}

} // namespace

std::vector<int> parse_id_list(const std::string& text) {
    std::vector<int>  ids;
    const char*       at  = text.data();
    const char* const end = at + text.size();
    while (at < end && *at != '\n') {
        int        first = -1;
        const auto one   = std::from_chars(at, end, first);
        int        last  = first;
        at               = one.ptr;
        if (one.ec == std::errc{} && at < end && *at == '-') {
            const auto two = std::from_chars(at + 1, end, last);
            at             = two.ptr;
            if (two.ec != std::errc{}) return {};
        }
        if (one.ec != std::errc{} || first < 0 || last < first || last >= kMaxId || (!ids.empty() && first <= ids.back())) return {};
        for (int i = first; i <= last; i++) ids.push_back(i);
        if (at < end && *at == ',') at++;
        else if (at < end && *at != '\n') return {};
    }
    return ids;
}

std::vector<MemoryNode> read_memory_nodes(const std::string& folder) {
    std::vector<MemoryNode> nodes;
    for (const int id : parse_id_list(first_line(folder + "/has_memory"))) {
        MemoryNode node{id, parse_id_list(first_line(folder + "/node" + std::to_string(id) + "/cpulist"))};
        if (!node.cpus.empty()) nodes.push_back(std::move(node));
    }
    return nodes;
}

std::vector<int> nodes_to_spread_over(const std::vector<MemoryNode>& nodes, const std::vector<int>& cpus) {
    std::vector<int> ids;
    for (const MemoryNode& n : nodes)
        if (std::any_of(cpus.begin(), cpus.end(), [&n](int c) { return std::binary_search(n.cpus.begin(), n.cpus.end(), c); }))
            ids.push_back(n.id);
    if (ids.size() < 2) ids.clear();
    return ids;
}

bool interleave_pages(void* p, size_t bytes, const std::vector<int>& nodes) {
    if (nodes.empty()) return false;
    const int                  last = *std::max_element(nodes.begin(), nodes.end());
    std::vector<unsigned long> mask(static_cast<size_t>(last / kWordBits + 1));
    for (const int id : nodes) mask[static_cast<size_t>(id / kWordBits)] |= 1UL << id % kWordBits;
    // Linux counts one bit less than it is told.
    return syscall(SYS_mbind, p, bytes, MPOL_INTERLEAVE, mask.data(), mask.size() * kWordBits + 1UL, 0U) == 0;
}

bool has_several_memory_nodes() {
    try {
        return memory_nodes().size() > 1;
    } catch (const std::exception&) { // out of memory: the caller will notice
        return false;
    }
}

void spread_pages(void* p, size_t bytes) noexcept {
    try {
        if (!has_several_memory_nodes() || has_own_policy()) return;
        const std::vector<int> nodes = nodes_to_spread_over(memory_nodes(), allowed_cpus());
        if (!nodes.empty()) (void)interleave_pages(p, bytes, nodes); // a wish, like huge pages
    } catch (const std::exception&) {                                // out of memory for a list of processors
    }
}

} // namespace tightkv
