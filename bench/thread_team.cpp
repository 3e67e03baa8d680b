#include "thread_team.h"

namespace tightkv::bench {

namespace {

constexpr int kSpins = 20000; // well below a millisecond

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

} // namespace

ThreadTeam::ThreadTeam(int n) {
    for (int i = 1; i < n; i++) others_.emplace_back([this, i] { serve(i); });
}

ThreadTeam::~ThreadTeam() {
    work_ = nullptr;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& t : others_) t.join();
}

void ThreadTeam::serve(int thread) {
    for (uint32_t seen = 0;; seen++) {
        for (int i = 0; i < kSpins && epoch_.load() == seen; i++) relax();
        epoch_.wait(seen);
        if (!work_) return;
        (*work_)(thread);
        busy_.fetch_sub(1);
    }
}

void ThreadTeam::run(const std::function<void(int)>& work) {
    work_ = &work;
    busy_.store(static_cast<int>(others_.size()));
    epoch_.fetch_add(1); // publishes work_ and busy_
    epoch_.notify_all();
    work(0);
    for (int i = 0; busy_.load() != 0; i++) i < kSpins ? relax() : std::this_thread::yield();
}

} // namespace tightkv::bench
