#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>

namespace tightkv::tool {

namespace {

// "" as long as too little is done to say.
std::string time_left(double seconds, double part) { return part > 0.01 ? minutes(seconds * (1 - part) / part) + " left" : std::string(); }

} // namespace

std::string minutes(double seconds) {
    const auto s = static_cast<long>(std::lround(std::max(0.0, seconds)));
    return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string ProgressLines::due(double seconds, double part, const std::string& stage) {
    const double gap = stage == stage_ ? kGap : kStageGap;
    if (seconds < kQuiet || (begun_ && seconds - last_ < gap)) return {};
    begun_                 = true;
    last_                  = seconds;
    stage_                 = stage;
    const std::string left = time_left(seconds, part);
    return fmt::format("tightkv: [{:3.0f} %] {}{}{}", part * 100, stage, stage.empty() || left.empty() ? "" : ", ", left);
}

Progress::Progress(double total) : total_(std::max(total, 1e-9)), terminal_(isatty(STDERR_FILENO) != 0), start_(Clock::now()) {}

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
    const auto   now     = Clock::now();
    const double seconds = std::chrono::duration<double>(now - start_).count(), part = std::min(done_ / total_, 1.0);
    if (!terminal_) {
        if (const std::string line = lines_.due(seconds, part, stage_); !line.empty()) fmt::print(stderr, "{}\n", line);
        return;
    }
    if (now - drawn_ < std::chrono::milliseconds(200)) return;
    drawn_ = now;
    draw_bar(seconds, part);
}

void Progress::draw_bar(double seconds, double part) {
    const auto bars = static_cast<size_t>(part * 24);
    const auto line = fmt::format("[{}{}] {:3.0f} %  {}  {}", std::string(bars, '#'), std::string(24 - bars, ' '), part * 100,
                                  time_left(seconds, part), stage_);
    std::fprintf(stderr, "\r\x1b[K%.*s", 100, line.c_str());
    std::fflush(stderr);
    visible_ = true;
}

} // namespace tightkv::tool
