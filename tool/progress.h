// A progress line on stderr with the time left; silent where stderr is no terminal.
#pragma once
#include <chrono>
#include <string>

namespace tightkv::tool {

class Progress {
public:
    // total: units of work, in whatever measure advance() is given; the time left is extrapolated from their rate.
    explicit Progress(double total);
    ~Progress();
    Progress(const Progress&)            = delete;
    Progress& operator=(const Progress&) = delete;

    void stage(const std::string& name); // what is being done now
    void advance(double units);
    void clear(); // wipes the line, so that something else can be printed

private:
    using Clock = std::chrono::steady_clock;
    void draw();

    const double            total_;
    const bool              on_;
    double                  done_ = 0;
    std::string             stage_;
    const Clock::time_point start_;
    Clock::time_point       drawn_{};
    bool                    visible_ = false;
};

std::string minutes(double seconds); // 75 -> "1:15"

} // namespace tightkv::tool
