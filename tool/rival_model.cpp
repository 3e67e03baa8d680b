#include "rival_model.h"

#include <cmath>
#include <iostream>

#include <fmt/format.h>

#include "child_process.h"
#include "commands.h"
#include "engine_llama_rival.h"
#include "errors.h"
#include "interrupt.h"

namespace tightkv::tool {

namespace {

class ProcessLane : public SpeedLane {
public:
    ProcessLane(std::string name_, const std::vector<std::string>& arguments) : child_(name_, arguments) { name = std::move(name_); }
    nlohmann::json ask(const std::string& line) {
        child_.ask(line);
        return child_.answer();
    }
    bool fill(int blocks) override {
        ask(fmt::format("fill {}", blocks));
        return !interrupted();
    }
    double rate(int n, int batch) override {
        const double tps = ask(fmt::format("rate {} {}", n, batch))["tps"];
        return interrupted() ? -1 : tps;
    }
    std::vector<float> probe() override {
        const nlohmann::json answer = ask("probe");
        std::vector<float>   logits;
        for (const nlohmann::json& x : answer["logits"]) logits.push_back(x.is_null() ? NAN : x.get<float>()); // JSON has no NaN
        return interrupted() ? std::vector<float>{} : logits;
    }

private:
    ChildProcess child_;
};

} // namespace

RivalLane start_rival_model(const RivalCache& cache, const std::string& model, const ContextOptions& o, const std::vector<Token>& tokens) {
    const auto                     text      = [](int n) { return std::to_string(n); };
    const std::vector<std::string> arguments = {
        "bench",     "model-rival",  "--library", cache.library.folder, "--name",      cache.name(),      "--type",  cache.type,
        "--model",   model,          "--cells",   text(o.tokens),       "--sequences", text(o.sequences), "--batch", text(o.batch),
        "--threads", text(o.threads)};
    auto         lane  = std::make_unique<ProcessLane>(cache.name(), arguments);
    const double bytes = lane->ask(nlohmann::json(tokens).dump())["cache_bytes"];
    return {std::move(lane), bytes};
}

int run_model_rival(const ModelRivalOptions& o) {
    AnswerLine  answer;
    std::string line;
    if (!std::getline(std::cin, line)) return kExitFailure;
    auto context = std::make_unique<RivalContext>(RivalContextOptions{.folder    = o.library,
                                                                      .name      = o.name,
                                                                      .model     = o.model,
                                                                      .type      = o.type,
                                                                      .cells     = o.cells,
                                                                      .sequences = o.sequences,
                                                                      .batch     = o.batch,
                                                                      .threads   = o.threads});
    answer({{"cache_bytes", context->cache_bytes()}});
    ContextLane lane(o.name, std::move(context), nlohmann::json::parse(line).get<std::vector<Token>>());
    for (std::string what; std::cin >> what;) {
        int n = 0, batch = 0;
        if (what == "fill" && std::cin >> n) answer({{"filled", lane.fill(n)}});
        else if (what == "rate" && std::cin >> n >> batch) answer({{"tps", lane.rate(n, batch)}});
        else if (what == "probe") answer({{"logits", lane.probe()}});
        else return kExitFailure;
    }
    return 0;
}

} // namespace tightkv::tool
