// How far a long command is and how long it still takes, on stderr: a bar that is redrawn on a terminal, now and then a line elsewhere (a
// log, a pipe, a CI run).
#pragma once
#include <chrono>
#include <string>

namespace tightkv::tool {

// Which lines are due where they cannot be redrawn. Seconds are since the start of the work.
class ProgressLines {
public:
    static constexpr double kQuiet    = 2;  // s; shorter work says nothing
    static constexpr double kStageGap = 10; // s from one line to that of another stage; stages that end sooner are left out
    static constexpr double kGap      = 30; // s from one line to the next of the same stage

    // What to print now (part: 0 to 1 of the work is done), without an end of line; empty: nothing yet.
    std::string due(double seconds, double part, const std::string& stage);

private:
    bool        begun_ = false;
    double      last_  = 0;
    std::string stage_; // of the last line
};

class Progress {
public:
    // total: units of work, in whatever measure advance() is given; the time left is extrapolated from their rate.
    explicit Progress(double total);
    ~Progress();
    Progress(const Progress&)            = delete;
    Progress& operator=(const Progress&) = delete;

    void stage(const std::string& name); // what is being done now
    void advance(double units);
    void clear(); // wipes the bar, so that something else can be printed

private:
    using Clock = std::chrono::steady_clock;
    void draw();
    void draw_bar(double seconds, double part);

    const double            total_;
    const bool              terminal_;
    double                  done_ = 0;
    std::string             stage_;
    const Clock::time_point start_;
    Clock::time_point       drawn_{};
    bool                    visible_ = false;
    ProgressLines           lines_;
};

std::string minutes(double seconds); // 75 -> "1:15"

} // namespace tightkv::tool
