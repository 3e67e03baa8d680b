#include "rival_process.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include <fmt/format.h>

#include "engine_llama_attention.h"
#include "errors.h"
#include "table.h"

namespace tightkv::tool {

namespace {

class RivalProcess : public bench::Contender {
public:
    RivalProcess(const RivalLibrary& library, const std::string& type, const bench::AttentionData& data, double total, int threads) {
        name                                      = library.name + ":" + type;
        const auto&                    s          = data.shape;
        const std::string              total_text = fmt::format("{:.0f}", total);
        const std::vector<std::string> words      = {"/proc/self/exe",
                                                     "bench",
                                                     "attention-rival",
                                                     "--library",
                                                     library.folder,
                                                     "--name",
                                                     name,
                                                     "--type",
                                                     type,
                                                     "--head-dim",
                                                     std::to_string(s.head_dim),
                                                     "--q-heads",
                                                     std::to_string(s.n_heads),
                                                     "--kv-heads",
                                                     std::to_string(s.n_kv_heads),
                                                     "--tokens",
                                                     std::to_string(s.n_tokens),
                                                     "--n-kv",
                                                     std::to_string(s.n_kv),
                                                     "--threads",
                                                     std::to_string(threads),
                                                     "--bytes",
                                                     total_text};
        std::vector<char*>             argv;
        for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
        argv.push_back(nullptr);
        int to[2], from[2];
        if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) throw failure("no pipe for " + name);
        child_ = fork();
        std::signal(SIGPIPE, SIG_IGN); // a child that died shows when its answer is read
        if (child_ < 0) throw failure("no process for " + name);
        if (child_ == 0) {
            dup2(to[0], STDIN_FILENO), dup2(from[1], STDOUT_FILENO);
            execv(argv[0], argv.data());
            _exit(127);
        }
        close(to[0]), close(from[1]);
        to_ = fdopen(to[1], "w"), from_ = fdopen(from[0], "r");
        about_ = answer();
        layers = about_["layers"], layer_bytes = about_["layer_bytes"];
    }
    ~RivalProcess() override {
        fclose(to_), fclose(from_); // end of input ends the child
        waitpid(child_, nullptr, 0);
    }
    double time(double least_seconds) override {
        fmt::print(to_, "{}\n", least_seconds);
        fflush(to_);
        return answer()["seconds"];
    }
    bench::Verdict check(const bench::AttentionData&) override {
        return {about_["max_rel_error"], about_["error_bound"], about_["checked_rows"], about_["ok"], about_["where"]};
    }
    void            attend(int) override {}
    const float*    output() const override { return nullptr; }
    bench::HeadRows rows(int) const override { return {}; }
    double          huge() const override { return about_["huge_pages"]; }

private:
    Json answer() {
        char*             line = nullptr;
        size_t            room = 0;
        const ssize_t     n    = getline(&line, &room, from_);
        const std::string text(line ? line : "", n > 0 ? static_cast<size_t>(n) : 0);
        std::free(line);
        if (n <= 0) throw failure(fmt::format("the process of {} has ended", name));
        return Json::parse(text);
    }
    pid_t child_ = -1;
    FILE *to_ = nullptr, *from_ = nullptr;
    Json  about_;
};

} // namespace

std::vector<RivalLibrary> parse_rival_libraries(const std::vector<std::string>& options) {
    std::vector<RivalLibrary> libraries;
    for (const std::string& o : options) {
        const size_t at = o.find('=');
        if (at == std::string::npos || at == 0 || o.substr(0, at) == "llama" || o.substr(0, at) == "own" || o.find_first_of(":,") < at)
            throw usage_error(fmt::format("--rival '{}' is not accepted; accepted: NAME=FOLDER, the folder holding a libggml.so", o));
        if (::access((o.substr(at + 1) + "/libggml.so").c_str(), R_OK) != 0)
            throw usage_error(fmt::format("--rival '{}': there is no libggml.so in that folder; accepted: NAME=FOLDER", o));
        libraries.push_back({o.substr(0, at), o.substr(at + 1)});
    }
    return libraries;
}

std::unique_ptr<bench::Contender> start_rival_process(const RivalLibrary& library, const std::string& type,
                                                      const bench::AttentionData& data, double total_bytes, int threads) {
    return std::make_unique<RivalProcess>(library, type, data, total_bytes, threads);
}

int run_attention_rival(const AttentionRivalOptions& o) {
    std::signal(SIGINT, SIG_IGN); // the parent decides; the end of its pipe ends us
    const bench::AttentionData data({o.head_dim, o.q_heads, o.kv_heads, o.tokens, o.n_kv});
    const auto                 c = make_llama_attention(o.library, o.name, o.type, data, o.bytes, o.threads);
    const bench::Verdict       v = c->check(data);
    std::cout << Json{{"layers", c->layers},    {"layer_bytes", c->layer_bytes}, {"max_rel_error", v.max_rel_error},
                      {"error_bound", v.bound}, {"checked_rows", v.rows},        {"ok", v.ok},
                      {"where", v.where},       {"huge_pages", c->huge()}}
              << std::endl;
    for (double least; std::cin >> least;) std::cout << Json{{"seconds", c->time(least)}} << std::endl;
    return 0;
}

} // namespace tightkv::tool
