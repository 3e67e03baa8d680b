// On which memory nodes the pages of a cache lie: the choice for machines of any number of nodes, and where they are on this one.
#include "cache/numa.h"

#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <latch>
#include <map>
#include <numeric>
#include <thread>

#include "cache/tile_store.h"
#include "test_data.h"

using namespace tightkv;
using namespace tightkv::test;

namespace fs = std::filesystem;

namespace {

const std::string kThisMachine = "/sys/devices/system/node";

std::vector<int> range(int first, int n) {
    std::vector<int> ids(static_cast<size_t>(n));
    std::iota(ids.begin(), ids.end(), first);
    return ids;
}

// n nodes of four processors each, in rows: node i has 4i … 4i + 3.
std::vector<MemoryNode> machine_of(int n) {
    std::vector<MemoryNode> nodes;
    for (int i = 0; i < n; i++) nodes.push_back({i, range(4 * i, 4)});
    return nodes;
}

std::vector<int> cpus_of_this_thread() {
    cpu_set_t        set;
    std::vector<int> cpus;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set)) cpus.push_back(i);
    return cpus;
}

// The policy that was set for the page at p (MPOL_DEFAULT: none, that of the thread that touches it first holds), or the calling thread's
// where p is null; -1 where the system does not say.
int policy_at(const void* p) {
    int mode = -1;
    return syscall(SYS_get_mempolicy, &mode, nullptr, 0UL, p, p ? static_cast<unsigned long>(MPOL_F_ADDR) : 0UL) == 0 ? mode : -1;
}

// Resident pages in [p, p + bytes), by node; empty where the system does not say.
std::map<int, size_t> pages_by_node(const void* p, size_t bytes) {
    const auto         page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<void*> pages;
    for (size_t at = 0; at < bytes; at += page) pages.push_back(static_cast<char*>(const_cast<void*>(p)) + at);
    std::vector<int>      node(pages.size(), -1);
    std::map<int, size_t> count;
    if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, node.data(), 0) != 0) return count;
    for (const int id : node)
        if (id >= 0) count[id]++; // negative: an error code, of a page that is not there
    return count;
}

constexpr StoreShape kShape{.n_streams = 1, .n_kv_heads = 8, .head_dim = 128, .n_cells = 32768}; // 16.5 MiB in turbo4

// All rows of a store, by n threads at once, each with heads of its own.
std::unique_ptr<TileStore> filled_store(int n_threads) {
    const Format&              f = *find_format("turbo4");
    std::unique_ptr<TileStore> store;
    EXPECT_TRUE(TileStore::create(f, Operand::K, kShape, store).ok());
    Random               random(3);
    const auto           x = gaussian(random, static_cast<size_t>(kShape.head_dim));
    std::vector<uint8_t> row(f.row_bytes(kShape.head_dim));
    CodedRow             coded;
    (void)kernels().encode(f, transform_for(kShape.head_dim), x.data(), coded);
    pack_row(f, kShape.head_dim, coded, row.data());
    std::vector<std::thread> threads;
    std::latch               all_here(n_threads);
    for (int t = 0; t < n_threads; t++)
        threads.emplace_back([&, t] {
            all_here.arrive_and_wait();
            for (int h = t; h < kShape.n_kv_heads; h += n_threads) {
                EXPECT_EQ(store->write(0, h, 0, x.data()), RowStatus::kOk);
                for (int64_t c = 1; c < kShape.n_cells; c++) store->write_canonical(0, h, c, row.data());
            }
        });
    for (std::thread& t : threads) t.join();
    return store;
}

const uint8_t* base_of(const TileStore& s) { return s.tiles(0, 0).tiles; }

// f on a thread of its own: what it changes about itself ends with it.
template <class F> void on_a_thread(F f) { std::thread(f).join(); }

} // namespace

TEST(Numa, ListsOfIds) {
    EXPECT_EQ(parse_id_list("0"), (std::vector<int>{0}));
    EXPECT_EQ(parse_id_list("0\n"), (std::vector<int>{0}));
    EXPECT_EQ(parse_id_list("0-3,8,10-11\n"), (std::vector<int>{0, 1, 2, 3, 8, 10, 11}));
    for (const char* none : {"", "\n", "a", "-", "1-", "-1", "3-1", "0,,1", "0 1", "1,0", "0-2,2", "0-99999999", "99999999999"})
        EXPECT_TRUE(parse_id_list(none).empty()) << "'" << none << "'";
}

TEST(Numa, NodesOfAFolder) {
    const fs::path folder = fs::path(testing::TempDir()) / ("tightkv_numa_" + std::to_string(getpid()));
    const auto     put    = [&folder](const fs::path& file, const char* text) {
        fs::create_directories((folder / file).parent_path());
        std::ofstream(folder / file) << text;
    };
    put("online", "0-3\n");
    put("has_memory", "0,2-3\n"); // node 1 has processors alone
    put("node0/cpulist", "0-1,4-5\n");
    put("node1/cpulist", "2-3\n");
    put("node2/cpulist", "6\n");
    put("node3/cpulist", "\n"); // memory alone
    const auto nodes = read_memory_nodes(folder);
    fs::remove_all(folder);
    ASSERT_EQ(nodes.size(), 2u);
    EXPECT_EQ(nodes[0].id, 0);
    EXPECT_EQ(nodes[0].cpus, (std::vector<int>{0, 1, 4, 5}));
    EXPECT_EQ(nodes[1].id, 2);
    EXPECT_EQ(nodes[1].cpus, (std::vector<int>{6}));
    EXPECT_TRUE(read_memory_nodes(folder).empty()) << "no such folder";
}

TEST(Numa, WhichNodes) {
    for (int n = 1; n <= 16; n++) {
        const auto nodes = machine_of(n);
        const auto over  = [&nodes](const std::vector<int>& cpus) { return nodes_to_spread_over(nodes, cpus); };
        EXPECT_EQ(over(range(0, 4 * n)), n == 1 ? std::vector<int>{} : range(0, n)) << "a thread that may run anywhere, " << n << " nodes";
        for (int i = 0; i < n; i++) EXPECT_TRUE(over(range(4 * i, 4)).empty()) << "held to node " << i << " of " << n;
        for (int i = 0; i + 1 < n; i++) EXPECT_EQ(over({4 * i + 3, 4 * i + 4}), range(i, 2)) << "held to two processors of two nodes";
        EXPECT_TRUE(over({}).empty()) << "the system does not say";
        EXPECT_TRUE(over({4 * n, 4 * n + 1}).empty()) << "processors of no node with memory";
    }
    EXPECT_EQ(nodes_to_spread_over({{0, {0, 2}}, {5, {1, 3}}, {9, {4}}}, {2, 3}), (std::vector<int>{0, 5})) << "ids as they are";
}

TEST(Numa, ThePolicyIsOfThesePagesAlone) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = 64 * page;
    auto* const  map = static_cast<uint8_t*>(mmap(nullptr, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(map, MAP_FAILED);
    EXPECT_FALSE(interleave_pages(map, bytes, {}));
    EXPECT_FALSE(interleave_pages(map, bytes, {1023})) << "a node that is not there";
    std::memset(map, 1, page); // refused, and as good as before
    const auto nodes = read_memory_nodes(kThisMachine);
    if (nodes.empty() || policy_at(nullptr) < 0) GTEST_SKIP() << "this system knows no memory nodes";
    std::vector<int> ids;
    for (const MemoryNode& n : nodes) ids.push_back(n.id);
    const int before = policy_at(map);
    ASSERT_TRUE(interleave_pages(map, bytes, ids)) << std::strerror(errno);
    EXPECT_EQ(policy_at(map), MPOL_INTERLEAVE);
    EXPECT_EQ(policy_at(map + bytes - page), MPOL_INTERLEAVE);
    EXPECT_EQ(policy_at(map + bytes), before);
    std::memset(map, 1, 2 * bytes);
    size_t seen = 0;
    for (const auto& [id, n] : pages_by_node(map + page, bytes - page)) {
        EXPECT_NE(std::find(ids.begin(), ids.end(), id), ids.end()) << "node " << id;
        EXPECT_NEAR(static_cast<double>(n), 63.0 / static_cast<double>(ids.size()), 1.0) << "in turn";
        seen += n;
    }
    EXPECT_EQ(seen, 63u);
    munmap(map, 2 * bytes);
}

// One writer or several at once; on a machine with one node this says that nothing was asked of the system.
TEST(Numa, AStoreIsSpreadOverTheNodesOfItsWriter) {
    const int  own    = policy_at(nullptr);
    const auto nodes  = read_memory_nodes(kThisMachine);
    const auto spread = own == MPOL_DEFAULT ? nodes_to_spread_over(nodes, cpus_of_this_thread()) : std::vector<int>{};
    if (own < 0) GTEST_SKIP() << "this system knows no memory nodes";
    for (const int n_threads : {1, 4}) {
        const auto store  = filled_store(n_threads);
        const auto counts = pages_by_node(base_of(*store), store->bytes());
        if (counts.empty()) GTEST_SKIP() << "this system does not say where pages are";
        EXPECT_EQ(policy_at(base_of(*store)), spread.empty() ? MPOL_DEFAULT : MPOL_INTERLEAVE);
        size_t pages = 0;
        for (const auto& [id, n] : counts) pages += n;
        if (!spread.empty() || nodes.size() == 1) { // elsewhere the system may be moving some as we look, to who reads them
            EXPECT_EQ(pages, store->bytes() / static_cast<size_t>(sysconf(_SC_PAGESIZE)));
        }
        EXPECT_TRUE(nodes.size() > 1 || counts.size() == 1);
        // In turn: where the even share is not whole, one page more or less, of the huge and of the small ones.
        for (const int id : spread) {
            ASSERT_EQ(counts.count(id), 1u) << "node " << id;
            EXPECT_NEAR(static_cast<double>(counts.at(id)), static_cast<double>(pages) / static_cast<double>(spread.size()), 512 + 1)
                << "node " << id << ", " << n_threads << " writers";
        }
    }
}

TEST(Numa, AWriterHeldToOneNodeKeepsItsPages) {
    const auto cpus = cpus_of_this_thread();
    if (policy_at(nullptr) != MPOL_DEFAULT) GTEST_SKIP() << "this program was started with a memory policy, or the system knows none";
    for (const MemoryNode& node : read_memory_nodes(kThisMachine))
        on_a_thread([&] {
            cpu_set_t set;
            CPU_ZERO(&set);
            for (const int c : node.cpus)
                if (std::find(cpus.begin(), cpus.end(), c) != cpus.end()) CPU_SET(static_cast<size_t>(c), &set);
            if (sched_setaffinity(0, sizeof set, &set) != 0) return; // a node that this program may not use
            const auto store = filled_store(1);                      // threads have the processors of who started them
            EXPECT_EQ(policy_at(base_of(*store)), MPOL_DEFAULT);
            for (const auto& [id, n] : pages_by_node(base_of(*store), store->bytes())) EXPECT_EQ(id, node.id) << n << " pages";
        });
}

TEST(Numa, APolicyOfTheUserStays) {
    if (policy_at(nullptr) < 0) GTEST_SKIP() << "this system knows no memory nodes";
    for (const MemoryNode& node : read_memory_nodes(kThisMachine))
        on_a_thread([&] {
            std::vector<unsigned long> mask(static_cast<size_t>(node.id / 64 + 1));
            mask[static_cast<size_t>(node.id / 64)] = 1UL << node.id % 64;
            if (syscall(SYS_set_mempolicy, MPOL_BIND, mask.data(), mask.size() * 64 + 1) != 0) return; // none to be had here
            const auto store = filled_store(1);
            EXPECT_EQ(policy_at(base_of(*store)), MPOL_DEFAULT) << "the thread's holds";
            for (const auto& [id, n] : pages_by_node(base_of(*store), store->bytes())) EXPECT_EQ(id, node.id) << n << " pages";
        });
}
