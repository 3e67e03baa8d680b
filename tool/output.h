// Where results go. Opened before anything is measured, so that an unwritable place is known at once.
#pragma once
#include <span>
#include <string>

namespace tightkv::tool {

// A file that appears only when all of it is written: the text goes to FILE.part, which is renamed. Devices and pipes are written directly.
class OutputFile {
public:
    explicit OutputFile(const std::string& path); // empty: standard output; throws Failure
    ~OutputFile();
    OutputFile(const OutputFile&)            = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    void write(const std::string& text); // once; throws Failure
    // The same in pieces; not to standard output.
    void append(std::span<const char> bytes);
    void finish();

private:
    std::string path_, part_; // part_ is empty where there is no file to rename
    int         fd_ = -1;
};

void print(const std::string& text); // to standard output; throws Failure when that does not take it

} // namespace tightkv::tool
