#include "child_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

ChildProcess::ChildProcess(std::string name, const std::vector<std::string>& arguments) : name_(std::move(name)) {
    std::vector<char*> argv = {const_cast<char*>("/proc/self/exe")};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) throw failure("no pipe for " + name_);
    said_  = memfd_create("tightkv-child", MFD_CLOEXEC);
    child_ = fork();
    std::signal(SIGPIPE, SIG_IGN); // a child that died shows when its answer is read
    if (child_ < 0) throw failure("no process for " + name_);
    if (child_ == 0) {
        dup2(to[0], STDIN_FILENO), dup2(from[1], STDOUT_FILENO);
        if (said_ >= 0) dup2(said_, STDERR_FILENO);
        execv(argv[0], argv.data());
        _exit(127);
    }
    close(to[0]), close(from[1]);
    to_ = fdopen(to[1], "w"), from_ = fdopen(from[0], "r");
}

ChildProcess::~ChildProcess() {
    fclose(to_), fclose(from_); // end of input ends the child
    reap();
    if (said_ >= 0) close(said_);
}

void ChildProcess::reap() {
    if (child_ > 0) waitpid(child_, &status_, 0);
    child_ = -1;
}

void ChildProcess::ask(const std::string& line) {
    fmt::print(to_, "{}\n", line);
    fflush(to_);
}

nlohmann::json ChildProcess::answer() {
    char*             line = nullptr;
    size_t            room = 0;
    const ssize_t     n    = getline(&line, &room, from_);
    const std::string text(line ? line : "", n > 0 ? static_cast<size_t>(n) : 0);
    std::free(line);
    if (nlohmann::json said = nlohmann::json::parse(text, nullptr, false); n > 0 && !said.is_discarded()) return said;
    if (n > 0) throw failure(fmt::format("the process of {} answered what is no answer: {}", name_, text.substr(0, 80)));
    reap();
    throw failure(last_words());
}

std::string ChildProcess::last_words() {
    char              said[400] = {};
    const ssize_t     n         = said_ >= 0 ? pread(said_, said, sizeof said - 1, 0) : 0;
    const std::string text(said, n > 0 ? static_cast<size_t>(n) : 0);
    const size_t      first = text.find_first_not_of(" \t\r\n"), end = text.find('\n', first);
    const std::string words = first == std::string::npos ? "it said nothing" : text.substr(first, end - first);
    if (const std::string ours = "tightkv: "; words.starts_with(ours)) return words.substr(ours.size());
    const std::string how = WIFSIGNALED(status_) ? strsignal(WTERMSIG(status_)) : fmt::format("exit code {}", WEXITSTATUS(status_));
    return fmt::format("the process of {} has ended ({}): {}", name_, how, words);
}

AnswerLine::AnswerLine() : out_(fdopen(dup(STDOUT_FILENO), "w")) {
    for (const int s : {SIGINT, SIGTERM}) std::signal(s, SIG_IGN);
    dup2(STDERR_FILENO, STDOUT_FILENO);
}

void AnswerLine::operator()(const nlohmann::json& answer) {
    fmt::print(out_, "{}\n", answer.dump());
    fflush(out_);
}

} // namespace tightkv::tool
