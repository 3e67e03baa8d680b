// This program again, with other arguments, in a process of its own: it answers lines with lines of JSON. What it says otherwise (a foreign
// library in it that aborts, say) is kept, and its beginning is part of the failure when the process ends too early.
#pragma once
#include <cstdio>
#include <string>
#include <sys/types.h>
#include <vector>

#include <nlohmann/json.hpp>

namespace tightkv::tool {

class ChildProcess {
public:
    // name: what failures call it. Throws Failure.
    ChildProcess(std::string name, const std::vector<std::string>& arguments);
    ~ChildProcess(); // ends its input, and waits for it
    ChildProcess(const ChildProcess&)            = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    void           ask(const std::string& line);
    nlohmann::json answer(); // the next line; throws Failure where there is none

private:
    std::string last_words(); // after it has ended
    void        reap();

    std::string name_;
    pid_t       child_  = -1;
    int         said_   = -1; // a file in memory: its stderr, and what foreign code prints
    int         status_ = 0;
    FILE *      to_ = nullptr, *from_ = nullptr;
};

// In the child, before anything else is printed: where answers go. From here on stdout means stderr, and signals to stop are the parent's
// business: the end of its input ends the child.
class AnswerLine {
public:
    AnswerLine();
    void operator()(const nlohmann::json& answer);

private:
    FILE* out_;
};

} // namespace tightkv::tool
