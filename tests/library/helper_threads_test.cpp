// Threads that help: all parts once, help that really comes, threads that are used again, callers at the same time.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "capi/helper_threads.h"

using namespace tightkv;

namespace {

// Parts 0 … n-1, taken one by one, each counted.
struct Parts {
    explicit Parts(int n) : done(static_cast<size_t>(n)) {}
    static void work(void* self) {
        auto& p = *static_cast<Parts*>(self);
        for (size_t i; (i = p.next++) < p.done.size();) p.done[i]++;
    }
    bool all_once() const {
        for (const std::atomic<int>& d : done)
            if (d != 1) return false;
        return true;
    }
    std::atomic<size_t>           next{0};
    std::vector<std::atomic<int>> done;
};

// Work that ends when `n` threads are inside at the same time, and whose they are.
struct Meeting {
    explicit Meeting(int n) : together(n) {}
    static void work(void* self) {
        auto& m = *static_cast<Meeting*>(self);
        {
            const std::lock_guard guard(m.lock);
            m.who.insert(std::this_thread::get_id());
        }
        m.together.arrive_and_wait();
    }
    std::latch                together;
    std::mutex                lock;
    std::set<std::thread::id> who;
};

} // namespace

TEST(HelperThreads, EveryPartOnce) {
    HelperThreads pool;
    for (const int n : {0, 1, 3, 0, 7, 1})
        for (const int parts : {0, 1, 2, 100}) {
            Parts p(parts);
            pool.run(n, Parts::work, &p);
            EXPECT_TRUE(p.all_once()) << n << " helpers, " << parts << " parts";
        }
}

TEST(HelperThreads, TheSameThreadsHelpAgain) {
    HelperThreads             pool;
    std::set<std::thread::id> seen;
    for (int i = 0; i < 20; i++) {
        Meeting m(4);
        pool.run(3, Meeting::work, &m); // would never return if fewer than three came
        EXPECT_EQ(m.who.size(), 4u);
        EXPECT_TRUE(m.who.contains(std::this_thread::get_id()));
        seen.insert(m.who.begin(), m.who.end());
    }
    EXPECT_EQ(seen.size(), 4u);
}

TEST(HelperThreads, NoHelpWantedStartsNoThread) {
    HelperThreads pool;
    Meeting       m(1);
    pool.run(0, Meeting::work, &m);
    EXPECT_EQ(m.who, std::set{std::this_thread::get_id()});
}

// Each of several callers gets its helpers, also while those of the others are busy.
TEST(HelperThreads, CallersAtTheSameTime) {
    HelperThreads            pool;
    std::vector<std::thread> callers;
    std::atomic<int>         wrong{0};
    Meeting                  all(4 * 3);
    for (int c = 0; c < 4; c++)
        callers.emplace_back([&] {
            pool.run(2, Meeting::work, &all); // every caller and every helper at once
            for (int i = 0; i < 300; i++) {
                Parts p(i % 40);
                pool.run(1 + i % 3, Parts::work, &p);
                wrong += !p.all_once();
            }
        });
    for (std::thread& t : callers) t.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(all.who.size(), 12u);
}

// A pool may go right after its first work, with helpers that have not woken up yet.
TEST(HelperThreads, EndsAtOnce) {
    for (int i = 0; i < 100; i++) {
        Parts p(i % 5);
        auto  pool = std::make_unique<HelperThreads>();
        pool->run(1 + i % 4, Parts::work, &p);
        pool.reset();
        ASSERT_TRUE(p.all_once());
    }
}

// The work of a caller is done when run() returns; a helper that comes late must not find it.
TEST(HelperThreads, LateHelpersFindNothing) {
    HelperThreads pool;
    for (int i = 0; i < 2000; i++) {
        auto p = std::make_unique<Parts>(1);
        pool.run(3, Parts::work, p.get());
        ASSERT_TRUE(p->all_once());
    }
}
