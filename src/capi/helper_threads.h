// Threads that help a caller through one piece of work, started when they are first wanted and asleep in between.
//
// One pool per cache: its threads end with it, so none outlives the library (dlclose) or works for a cache that is gone. Its callers
// may be several at a time; each brings a thread of its own, and waits for helpers that have begun only: one that wakes too late
// finds the work withdrawn. Nothing spins.
// Our own, as pools of others do not take work back: libpthreadpool (Debian) runs one job at a time and spins for a million rounds,
// OpenMP's spin as the environment says and are the host's to configure, oneTBB shares its threads with the host.
#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace tightkv {

class HelperThreads {
public:
    HelperThreads() = default;
    ~HelperThreads(); // no run() is under way
    HelperThreads(const HelperThreads&)            = delete;
    HelperThreads& operator=(const HelperThreads&) = delete;

    // work(data) on this thread and, at the same time, on up to n others: it is to be cut into parts that threads take one by one. It
    // must not throw. Where the system has no more threads the ones that are there do it all. Returns when every call of it has.
    void run(int n, void (*work)(void*), void* data);

private:
    struct Task {
        void (*work)(void*);
        void*                   data;
        int                     wanted;      // helpers that may still begin
        int                     running = 0; // helpers that have begun
        Task *                  before = nullptr, *after = nullptr;
        std::condition_variable done{};
    };
    void serve();
    void start_threads();
    void unlink(Task& t);

    std::mutex               lock_; // of all below and of tasks
    std::condition_variable  work_;
    Task *                   first_ = nullptr, *last_ = nullptr; // those that still want helpers, oldest first
    std::vector<std::thread> threads_;
    size_t                   wanted_ = 0; // helpers of all run()s under way: the pool never has more threads than this was at once
    bool                     end_    = false;
};

} // namespace tightkv
