#include "output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

namespace {

Failure unwritable(const std::string& path) { return failure(fmt::format("cannot write {}: {}", path, std::strerror(errno))); }

void write_all(int fd, std::span<const char> text, const std::string& name) {
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw unwritable(name);
        done += static_cast<size_t>(n);
    }
}

} // namespace

OutputFile::OutputFile(const std::string& path) : path_(path) {
    if (path.empty()) return;
    struct stat s  = {};
    const bool  is = ::stat(path.c_str(), &s) == 0;
    if (is && S_ISDIR(s.st_mode)) {
        errno = EISDIR;
        throw unwritable(path);
    }
    if (is && !S_ISREG(s.st_mode)) {
        fd_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    } else {
        if (is && ::access(path.c_str(), W_OK) != 0) throw unwritable(path); // would be replaced though it is protected
        part_ = path + ".part." + std::to_string(::getpid());                // two programs that write one file do not mix
        fd_   = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    }
    if (fd_ < 0) throw unwritable(path);
}

OutputFile::~OutputFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    if (!part_.empty()) ::unlink(part_.c_str());
}

void OutputFile::write(const std::string& text) {
    if (path_.empty()) return print(text);
    append(text);
    finish();
}

void OutputFile::append(std::span<const char> bytes) { write_all(fd_, bytes, path_); }

void OutputFile::finish() {
    const int fd       = fd_;
    fd_                = -1;
    const bool written = ::close(fd) == 0; // a late error of the disk comes here, before the old file is gone
    if (!written || (!part_.empty() && ::rename(part_.c_str(), path_.c_str()) != 0)) {
        const Failure why = unwritable(path_);
        if (!part_.empty()) ::unlink(part_.c_str());
        throw why;
    }
}

void print(const std::string& text) {
    std::fflush(stdout);
    write_all(STDOUT_FILENO, text, "standard output");
}

} // namespace tightkv::tool
