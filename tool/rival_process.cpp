#include "rival_process.h"

#include <unistd.h>

#include <cmath>
#include <iostream>

#include <fmt/format.h>

#include "child_process.h"
#include "engine_llama_attention.h"
#include "errors.h"
#include "table.h"

namespace tightkv::tool {

namespace {

class RivalProcess : public bench::Contender {
public:
    RivalProcess(const std::string& name_, const std::vector<std::string>& arguments) : child_(name_, arguments) {
        about_ = child_.answer();
        name   = name_;
        layers = about_["layers"], layer_bytes = about_["layer_bytes"];
    }
    double time(double least_seconds) override {
        child_.ask(fmt::format("{}", least_seconds));
        return child_.answer()["seconds"];
    }
    bench::Verdict check(const bench::AttentionData&) override {
        const Json& error = about_["max_rel_error"]; // null: JSON has no NaN
        return {error.is_null() ? NAN : double(error), about_["error_bound"], about_["checked_rows"], about_["ok"], about_["where"]};
    }
    void            attend(int) override {}
    const float*    output() const override { return nullptr; }
    bench::HeadRows rows(int) const override { return {}; }
    double          huge() const override { return about_["huge_pages"]; }

private:
    ChildProcess child_;
    Json         about_;
};

} // namespace

std::vector<RivalLibrary> parse_rival_libraries(const std::vector<std::string>& options, const std::string& file) {
    std::vector<RivalLibrary> libraries;
    for (const std::string& o : options) {
        const size_t at = o.find('=');
        if (at == std::string::npos || at == 0 || o.substr(0, at) == "llama" || o.substr(0, at) == "own" || o.find_first_of(":,") < at)
            throw usage_error(fmt::format("--rival '{}' is not accepted; accepted: NAME=FOLDER, the folder holding a {}", o, file));
        if (::access((o.substr(at + 1) + "/" + file).c_str(), R_OK) != 0)
            throw usage_error(fmt::format("--rival '{}': there is no {} in that folder; accepted: NAME=FOLDER", o, file));
        libraries.push_back({o.substr(0, at), o.substr(at + 1)});
    }
    return libraries;
}

std::unique_ptr<bench::Contender> start_rival_process(const RivalLibrary& library, const std::string& type,
                                                      const bench::AttentionData& data, double total_bytes, int threads) {
    const auto&       s    = data.shape;
    const std::string name = library.name + ":" + type;
    const auto        text = [](auto n) { return std::to_string(n); };
    return std::make_unique<RivalProcess>(name, std::vector<std::string>{"bench",      "attention-rival",
                                                                         "--library",  library.folder,
                                                                         "--name",     name,
                                                                         "--type",     type,
                                                                         "--q-heads",  text(s.n_heads),
                                                                         "--kv-heads", text(s.n_kv_heads),
                                                                         "--head-dim", text(s.head_dim),
                                                                         "--tokens",   text(s.n_tokens),
                                                                         "--n-kv",     text(s.n_kv),
                                                                         "--threads",  text(threads),
                                                                         "--bytes",    fmt::format("{:.0f}", total_bytes)});
}

int run_attention_rival(const AttentionRivalOptions& o) {
    AnswerLine                 answer;
    const bench::AttentionData data({o.head_dim, o.q_heads, o.kv_heads, o.tokens, o.n_kv});
    const auto                 c = make_llama_attention(o.library, o.name, o.type, data, o.bytes, o.threads);
    const bench::Verdict       v = c->check(data);
    answer({{"layers", c->layers},
            {"layer_bytes", c->layer_bytes},
            {"max_rel_error", v.max_rel_error},
            {"error_bound", v.bound},
            {"checked_rows", v.rows},
            {"ok", v.ok},
            {"where", v.where},
            {"huge_pages", c->huge()}});
    for (double least; std::cin >> least;) answer({{"seconds", c->time(least)}});
    return 0;
}

} // namespace tightkv::tool
