#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>

namespace tightkv::tool {

std::string minutes(double seconds) {
    const auto s = static_cast<long>(std::lround(std::max(0.0, seconds)));
    return fmt::format("{}:{:02}", s / 60, s % 60);
}

Progress::Progress(double total) : total_(std::max(total, 1e-9)), on_(isatty(STDERR_FILENO) != 0), start_(Clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::stage(const std::string& name) {
    stage_ = name;
    drawn_ = {};
    draw();
}

void Progress::advance(double units) {
    done_ += units;
    draw();
}

void Progress::clear() {
    if (!visible_) return;
    std::fputs("\r\x1b[K", stderr);
    std::fflush(stderr);
    visible_ = false;
}

void Progress::draw() {
    const auto now = Clock::now();
    if (!on_ || now - drawn_ < std::chrono::milliseconds(200)) return;
    drawn_                = now;
    const double part     = std::min(done_ / total_, 1.0);
    const double elapsed  = std::chrono::duration<double>(now - start_).count();
    const auto   bars     = static_cast<size_t>(part * 24);
    const auto   estimate = part > 0.01 ? minutes(elapsed * (1 - part) / part) + " left" : std::string();
    const auto   line =
        fmt::format("[{}{}] {:3.0f} %  {}  {}", std::string(bars, '#'), std::string(24 - bars, ' '), part * 100, estimate, stage_);
    std::fprintf(stderr, "\r\x1b[K%.*s", 100, line.c_str());
    std::fflush(stderr);
    visible_ = true;
}

} // namespace tightkv::tool
