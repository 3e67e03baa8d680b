// Threads of one side of a comparison. Like ggml's they spin for a while when they have nothing to do, so that an operation starts without
// a system call, and then sleep, so that they are out of the way while the other side is measured.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tightkv::bench {

class ThreadTeam {
public:
    explicit ThreadTeam(int n); // the caller is one of them
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&)            = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return static_cast<int>(others_.size()) + 1; }
    // work(thread) on every thread, 0 being the caller; returns when all have.
    void run(const std::function<void(int)>& work);

private:
    void serve(int thread);

    std::vector<std::thread>        others_;
    const std::function<void(int)>* work_ = nullptr; // null: end
    std::atomic<uint32_t>           epoch_{0};       // counts run()s
    std::atomic<int>                busy_{0};
};

} // namespace tightkv::bench
