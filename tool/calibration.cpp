// The model listened to, and its profile in the cache folder.
#include "calibration.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>

#include <fmt/format.h>

#include "attention_weights.h"
#include "base/checksum.h"
#include "cache/calibrate.h"
#include "cache/self_calibration.h"
#include "commands.h"
#include "engine_llama_rows.h"
#include "errors.h"
#include "install_paths.h"
#include "model_file.h"
#include "output.h"
#include "text.h"

namespace tightkv::tool {

namespace {

constexpr int kSkip = SelfCalibration::kLeftOut; // the first tokens of a text: everything attends to them

// [head][token], the first kSkip tokens of each taken out. Every row counts a thousandth of the average at least: a head that reads nothing
// of this text has statistics, too.
std::vector<float> usable(std::span<const float> weights, size_t heads) {
    const size_t       n = weights.size() / heads;
    std::vector<float> out;
    for (size_t h = 0; h < heads; h++) {
        const auto   of_head = weights.subspan(h * n + kSkip, n - kSkip);
        const double least   = 1e-3 * std::accumulate(of_head.begin(), of_head.end(), 0.0) / static_cast<double>(of_head.size()) + 1e-30;
        for (const float w : of_head) out.push_back(w + static_cast<float>(least));
    }
    return out;
}

// Every decode() is one chunk from its beginning, so the first rows are those of the first positions.
class Listener : public RowObserver {
public:
    explicit Listener(int threads) : weigher_(threads) {}

    void keys_values(const WrittenRows& w) override {
        Written& to = (w.operand == Operand::key ? keys_ : values_)[w.layer];
        to.head_dim = w.head_dim;
        to.rows.assign(w.rows.begin(), w.rows.end()), to.cells.assign(w.cells.begin(), w.cells.end());
    }
    void queries(const QueryRows& q) override {
        const auto k = keys_.find(q.layer),
                   v = values_.find(q.layer); // another layer's where layers share a cache: it counts once for each
        if (k == keys_.end() || v == values_.end() || k->second.head_dim != q.head_dim)
            throw failure(fmt::format("block {} has heads of keys, values and queries that do not match", q.layer));
        const auto             heads = static_cast<size_t>(q.n_heads), kv_heads = static_cast<size_t>(q.n_kv_heads);
        const AttentionWeights w = weigher_.weigh(q, k->second.rows, v->second.rows, k->second.cells, kSkip);
        add(q, tightkv::Operand::K, k->second, usable(w.keys, kv_heads));
        add(q, tightkv::Operand::V, v->second, usable(w.values, kv_heads));
        statistics.add_queries(q.layer, q.head_dim, q.n_heads, q.n_kv_heads,
                               q.rows.subspan(kSkip * heads * static_cast<size_t>(q.head_dim)), usable(w.queries, heads));
        if (q.rope) statistics.set_rope(q.layer, *q.rope);
        else extensible = false;
    }

    Calibration statistics;
    bool        extensible = true;

private:
    struct Written {
        int                  head_dim = 0;
        std::vector<float>   rows; // [token][kv_head][head_dim]
        std::vector<int64_t> cells;
    };
    void add(const QueryRows& q, tightkv::Operand op, const Written& x, std::span<const float> weights) {
        const auto skipped = static_cast<size_t>(kSkip) * static_cast<size_t>(q.n_kv_heads) * static_cast<size_t>(x.head_dim);
        statistics.add_rows(q.layer, op, x.head_dim, q.n_kv_heads, std::span(x.rows).subspan(skipped), weights);
    }

    AttentionWeigher       weigher_;
    std::map<int, Written> keys_, values_; // by layer, of the chunk being computed
};

// False: interrupted.
bool listen(const Model& model, const std::vector<std::vector<Token>>& chunks, int threads, Listener& listener, Progress& progress) {
    const int               n = static_cast<int>(chunks.front().size());
    Context                 context(model, {.name = "f16", .stock = true, .spec = {}},
                                    {.tokens = n, .batch = n, .outputs = 1, .threads = threads, .observer = &listener});
    std::vector<BatchToken> batch;
    for (const std::vector<Token>& chunk : chunks) {
        batch.clear();
        for (int i = 0; i < n; i++) batch.push_back({chunk[static_cast<size_t>(i)], i, 0, i == n - 1});
        context.clear();
        if (!context.decode(batch)) return false;
        progress.advance(n);
    }
    return true;
}

void set_norms(Profile& p, const std::string& path) {
    std::vector<int> blocks;
    for (const LayerProfile& l : p.layers) blocks.push_back(l.block);
    const std::vector<uint64_t> norms = norms_of(path, blocks);
    for (size_t i = 0; i < norms.size(); i++) p.layers[i].norm = norms[i];
}

// For people, in one line of any file name.
std::string listened_to(const std::string& text_file, uint64_t text_sum, size_t tokens, int chunk) {
    std::string name = std::filesystem::path(text_file).filename().string();
    std::replace_if(
        name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    return fmt::format("{} ({:016x}), {} tokens in chunks of {}, weighed by attention", name, text_sum, tokens, chunk);
}

std::string for_positions(const std::string& heard, int64_t positions) {
    return fmt::format("{}, for positions up to {}", heard, positions);
}

// Is the profile one of this model, made from what is said?
bool is_of(const Model& model, const std::string& file, const std::string& made_from) {
    Profile p;
    if (!Profile::load(file, p).ok() || !p.made_from.starts_with(made_from + ",")) return false;
    CacheChoice c{.name = file, .stock = false, .spec = {}};
    c.spec.profile = file;
    try {
        require_profile(model, c);
        return true;
    } catch (const Failure&) {
        return false;
    } // damaged, or of a model that had this name before
}

} // namespace

uint64_t text_checksum(const std::string& text) { return fnv1a(text.data(), text.size()); }

bool calibrate(const Model& model, const CalibrationPlan& plan, Progress& progress, Profile& out) {
    Listener  listener(plan.threads);
    Profile   profile;
    int64_t   positions = plan.positions;
    const int chunk     = static_cast<int>(plan.chunks.front().size());
    if (chunk <= kSkip)
        throw failure(
            fmt::format("{} cannot be calibrated: its contexts have {} tokens; accepted: more than {}", plan.model_path, chunk, kSkip));
    progress.stage("listening to the model");
    if (!listen(model, plan.chunks, plan.threads, listener, progress)) return false;
    progress.stage("solving");
    if (!listener.extensible && positions > chunk) {
        progress.clear();
        say(fmt::format("the position encoding of this model is of a kind that cannot be extended: calibrated for positions up to {}",
                        chunk));
        positions = chunk;
    }
    if (const Status s = listener.statistics.solve(positions - chunk + 1, profile); !s.ok())
        throw failure(fmt::format("{} cannot be calibrated on {}: {}", plan.model_path, plan.text_file, s.message()));
    profile.architecture    = architecture_of(plan.model_path);
    const std::string heard = listened_to(plan.text_file, plan.text_sum, plan.chunks.size() * static_cast<size_t>(chunk), chunk);
    profile.made_from       = fmt::format("{}, by tightkv {}", for_positions(heard, positions), TIGHTKV_VERSION);
    set_norms(profile, plan.model_path);
    out = std::move(profile);
    return true;
}

std::string profile_in_cache(const Model& model, const std::string& model_path, int threads) {
    namespace fs                = std::filesystem;
    const fs::path    file      = fs::path(cache_folder()) / "models" / (fs::path(model_path).stem().string() + ".tkv");
    const std::string text_file = calibration_text(), text = read_text(text_file);
    const uint64_t    sum      = text_checksum(text);
    const int         chunk    = std::min(kCalibrationChunk, model.n_ctx_train());
    const size_t      n_chunks = static_cast<size_t>(kCalibrationTokens / chunk);
    const std::string origin   = for_positions(listened_to(text_file, sum, n_chunks * static_cast<size_t>(chunk), chunk), chunk);
    if (fs::exists(file) && is_of(model, file.string(), origin)) return file.string();
    const auto chunks = cut_chunks(model.tokenize(text), chunk, static_cast<int>(n_chunks), model.bos(), text_file);
    Progress   progress(static_cast<double>(chunks.size()) * chunk);
    Profile    made;
    if (!calibrate(model, {model_path, text_file, sum, chunks, chunk, threads}, progress, made)) return {};
    fs::create_directories(file.parent_path());
    if (const Status s = made.save(file.string()); !s.ok()) throw failure(s.message());
    return file.string();
}

} // namespace tightkv::tool
