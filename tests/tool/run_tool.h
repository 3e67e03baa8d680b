// Runs the built program through a shell.
#pragma once
#include <filesystem>
#include <initializer_list>
#include <string>
#include <vector>

namespace tightkv::tool::test {

struct Outcome {
    int         exit_code = -1;
    std::string out, err;
};

// arguments: as in a shell; before: what stands in front of the program, for example variables.
Outcome run_tool(const std::string& arguments, const std::string& before = "");
Outcome run_program(const std::string& program, const std::string& arguments, const std::string& before = "");

// The part of `err` that is one line of ours about the failure: "tightkv: …". Lines of the adapter's start-up and of progress are left out.
std::string error_line(const Outcome& o);

// Runs it: this exit code, nothing on stdout, and one line of ours that has all the parts.
void expect_error(const std::string& arguments, int exit_code, std::initializer_list<const char*> parts);

// It ended so: this exit code, nothing on stdout, and one line of ours that has all the parts.
void expect_refusal(const Outcome& o, int exit_code, const std::vector<std::string>& parts);

// An empty folder that goes when its test ends.
class TempFolder {
public:
    TempFolder();
    ~TempFolder();
    TempFolder(const TempFolder&)            = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    std::string path(const std::string& name = "") const { return (folder_ / name).string(); }

private:
    std::filesystem::path folder_;
};

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

} // namespace tightkv::tool::test
