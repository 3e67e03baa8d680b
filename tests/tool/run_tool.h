// Runs the built program through a shell.
#pragma once
#include <initializer_list>
#include <string>

namespace tightkv::tool::test {

struct Outcome {
    int         exit_code = -1;
    std::string out, err;
};

// arguments: as in a shell; before: what stands in front of the program, for example variables.
Outcome run_tool(const std::string& arguments, const std::string& before = "");

// The part of `err` that is one line of ours about the failure: "tightkv: …". Lines of the adapter's start-up are left out.
std::string error_line(const Outcome& o);

// Runs it: this exit code, nothing on stdout, and one line of ours that has all the parts.
void expect_error(const std::string& arguments, int exit_code, std::initializer_list<const char*> parts);

} // namespace tightkv::tool::test
