// A list of tasks, and threads that take the oldest.
#include "capi/helper_threads.h"

#include <exception>

namespace tightkv {

HelperThreads::~HelperThreads() {
    {
        const std::lock_guard guard(lock_);
        end_ = true;
    }
    work_.notify_all();
    for (std::thread& t : threads_) t.join();
}

void HelperThreads::start_threads() {
    try {
        while (threads_.size() < wanted_) threads_.emplace_back([this] { serve(); });
    } catch (const std::exception&) { // no thread or no memory to be had: the caller does what is left
    }
}

void HelperThreads::unlink(Task& t) {
    (t.before ? t.before->after : first_) = t.after;
    (t.after ? t.after->before : last_)   = t.before;
}

void HelperThreads::serve() {
    std::unique_lock guard(lock_);
    for (;;) {
        work_.wait(guard, [this] { return end_ || first_; });
        if (end_) return;
        Task& t = *first_;
        if (--t.wanted == 0) unlink(t);
        t.running++;
        guard.unlock();
        t.work(t.data);
        guard.lock();
        if (--t.running == 0) t.done.notify_one(); // under the lock: the task is gone as soon as its caller has it
    }
}

void HelperThreads::run(int n, void (*work)(void*), void* data) {
    if (n < 1) return work(data);
    Task             t{work, data, n};
    std::unique_lock guard(lock_);
    wanted_ += static_cast<size_t>(n);
    start_threads();
    (last_ ? last_->after : first_) = &t;
    t.before                        = last_;
    last_                           = &t;
    guard.unlock();
    n == 1 ? work_.notify_one() : work_.notify_all();
    work(data);
    guard.lock();
    if (t.wanted > 0) unlink(t);
    t.wanted = 0;
    t.done.wait(guard, [&t] { return t.running == 0; });
    wanted_ -= static_cast<size_t>(n);
}

} // namespace tightkv
