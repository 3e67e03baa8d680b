#include "lab_rows.h"

#include <algorithm>
#include <filesystem>

#include <fmt/format.h>

#include "base/half.h"
#include "cache/self_calibration.h"
#include "errors.h"
#include "text.h"

namespace tightkv::tool {

namespace {

constexpr int kFirstFitted = SelfCalibration::kLeftOut; // tokens before this position are sinks and are not fitted to
constexpr int kBatch       = 512;                       // tokens

lab::Operand operand_of(const WrittenRows& w) { return w.operand == Operand::key ? lab::Operand::key : lab::Operand::value; }

// Rewrites the cache of one context.
class LabRows : public RowObserver {
public:
    LabRows(LabFits& fits, std::string method) : fits_(fits), method_(std::move(method)) {}

    void keys_values(const WrittenRows& w) override {
        if (w.positions.size() != w.cells.size())
            throw failure(fmt::format("cache 'lab:{}' needs the positions of tokens; accepted: models with RoPE", method_));
        const size_t              width = static_cast<size_t>(w.head_dim) * static_cast<size_t>(w.n_kv_heads);
        std::map<int64_t, size_t> before; // rows of the streams that were written to
        auto&                     streams = layers_[{w.layer, w.operand}];
        for (size_t t = 0; t < w.cells.size(); t++) {
            const int64_t stream = w.cells[t] / w.cells_per_stream;
            Sequence&     s      = streams[stream];
            if (w.positions[t] == 0) s = {}; // a new text
            if (s.rows != static_cast<size_t>(w.positions[t]))
                throw failure(fmt::format("cache 'lab:{}': row {} was written where row {} comes next", method_, w.positions[t], s.rows));
            before.try_emplace(stream, s.rows);
            s.kept.insert(s.kept.end(), w.rows.begin() + static_cast<std::ptrdiff_t>(t * width),
                          w.rows.begin() + static_cast<std::ptrdiff_t>((t + 1) * width));
            s.cells.push_back(w.cells[t]);
            s.rows++;
        }
        const LabFits::Heads& heads = fits_.heads(method_, w.layer, operand_of(w), w.head_dim, w.n_kv_heads);
        for (const auto& [stream, n] : before) rewrite(w, heads, streams[stream]);
    }

private:
    // A stream's rows that may still change.
    struct Sequence {
        size_t               rows = 0, first = 0; // written so far; index of the first kept one
        std::vector<float>   kept;                // [row][kv_head][head_dim], as the model computed them
        std::vector<int64_t> cells;
    };

    static void rewrite(const WrittenRows& w, const LabFits::Heads& heads, Sequence& s) {
        const auto         d = static_cast<size_t>(w.head_dim), width = d * heads.size();
        const size_t       n = s.cells.size();
        std::vector<float> rows(n * d), seen(n * d);
        for (size_t h = 0; h < heads.size(); h++) {
            for (size_t t = 0; t < n; t++) std::copy_n(&s.kept[t * width + h * d], d, &rows[t * d]);
            heads[h]->roundtrip(s.first, rows, seen);
            for (size_t t = 0; t < n; t++) {
                const auto cell = w.cached(s.cells[t]).subspan(h * d, d);
                std::transform(&seen[t * d], &seen[t * d] + d, cell.begin(), float_to_half);
            }
        }
        const size_t done = heads[0]->first_changed(s.rows) - s.first;
        s.kept.erase(s.kept.begin(), s.kept.begin() + static_cast<std::ptrdiff_t>(done * width));
        s.cells.erase(s.cells.begin(), s.cells.begin() + static_cast<std::ptrdiff_t>(done));
        s.first += done;
    }

    LabFits&                                                       fits_;
    std::string                                                    method_;
    std::map<std::pair<int, Operand>, std::map<int64_t, Sequence>> layers_; // by stream
};

} // namespace

struct LabFits::Layer {
    int                             head_dim = 0;
    std::vector<std::vector<float>> rows, queries; // by KV head, [n][head_dim]

    lab::LayerSamples samples(lab::Operand operand) const {
        lab::LayerSamples s{operand, head_dim, {}};
        for (size_t h = 0; h < rows.size(); h++)
            s.heads.push_back({rows[h], operand == lab::Operand::key ? std::span<const float>(queries[h]) : std::span<const float>()});
        return s;
    }
};

class LabFits::Capture : public RowObserver {
public:
    explicit Capture(LabFits& fits) : fits_(fits) {}
    void keys_values(const WrittenRows& w) override {
        Layer& layer   = of(w.layer, operand_of(w), static_cast<size_t>(w.n_kv_heads));
        layer.head_dim = w.head_dim;
        share_out(w.rows, w.positions, static_cast<size_t>(w.n_kv_heads), 1, w.head_dim, layer.rows);
    }
    void queries(const QueryRows& q) override {
        const auto heads = static_cast<size_t>(q.n_kv_heads);
        share_out(q.rows, q.positions, heads, static_cast<size_t>(q.n_heads) / heads, q.head_dim,
                  of(q.layer, lab::Operand::key, heads).queries);
    }

private:
    Layer& of(int layer, lab::Operand operand, size_t heads) {
        auto& l = fits_.layers_[{layer, operand}];
        if (!l) l = std::make_unique<Layer>();
        l->rows.resize(heads), l->queries.resize(heads);
        return *l;
    }
    // rows: [token][kv_head][of the group][head_dim]
    static void share_out(std::span<const float> rows, std::span<const int> positions, size_t heads, size_t group, int head_dim,
                          std::vector<std::vector<float>>& out) {
        const size_t n = group * static_cast<size_t>(head_dim);
        for (size_t at = 0; at < rows.size(); at += n) {
            const size_t token = at / (n * heads), head = at / n % heads;
            if (token < positions.size() && positions[token] < kFirstFitted) continue;
            out[head].insert(out[head].end(), rows.begin() + static_cast<std::ptrdiff_t>(at),
                             rows.begin() + static_cast<std::ptrdiff_t>(at + n));
        }
    }

    LabFits& fits_;
};

void require_lab_head_dim(const Model& m, const CacheChoice& cache) {
    if (cache.lab.empty()) return;
    const auto method = lab::make_method(cache.lab);
    for (const int d : {m.head_dim_k(), m.head_dim_v()}) {
        if (!valid_head_dim(d))
            throw failure(fmt::format("cache '{}' cannot be used with {}: its head_dim is {}; accepted: multiples of 32 from {} to {}",
                                      cache.name, m.path(), d, kMinHeadDim, kMaxHeadDim));
        if (const std::string why = method->refusal(d); !why.empty())
            throw failure(fmt::format("cache '{}' cannot be used with {}: {}", cache.name, m.path(), why));
    }
}

LabFits::LabFits(const Model& model, const std::vector<CacheChoice>& caches, const std::string& text, const std::string& measured_text,
                 int ctx, int threads)
    : model_(model), ctx_(ctx) {
    std::string to_fit;
    for (const CacheChoice& c : caches) {
        if (c.lab.empty()) continue;
        require_lab_head_dim(model, c);
        auto& method = methods_[c.lab] = lab::make_method(c.lab);
        if (to_fit.empty() && method->needs_samples()) to_fit = c.name;
    }
    if (to_fit.empty()) return;
    std::error_code ec;
    if (std::filesystem::equivalent(text, measured_text, ec))
        throw usage_error(
            fmt::format("cache '{}' is fitted on {}, which must not be the text that is measured: name another with --text", to_fit, text));
    Capture    capture(*this);
    Context    context(model, {.name = "f16", .stock = true, .spec = {}, .lab = {}},
                       {.tokens = ctx, .batch = std::min(ctx, kBatch), .outputs = 1, .threads = threads, .observer = &capture});
    const auto chunks = cut_chunks(model.tokenize(read_text(text)), ctx, (kLabTokens + ctx - 1) / ctx, model.bos(), text);
    for (const std::vector<Token>& chunk : chunks) {
        context.clear();
        for (size_t at = 0; at < chunk.size(); at += kBatch) {
            std::vector<BatchToken> batch;
            for (size_t i = at; i < std::min(chunk.size(), at + kBatch); i++) batch.push_back({chunk[i], static_cast<int>(i), 0, false});
            batch.back().output = true;
            if (!context.decode(batch)) return; // interrupted: who measures will notice
        }
    }
}

LabFits::~LabFits() = default;

std::unique_ptr<RowObserver> LabFits::observer(const CacheChoice& cache) { return std::make_unique<LabRows>(*this, cache.lab); }

double LabFits::bits_per_value(const CacheChoice& cache) const {
    const lab::Method& m = *methods_.at(cache.lab);
    const int          k = model_.head_dim_k(), v = model_.head_dim_v();
    return (lab::bits_per_value(m.bits(lab::Operand::key, k), k, ctx_) * k +
            lab::bits_per_value(m.bits(lab::Operand::value, v), v, ctx_) * v) /
           (k + v);
}

const LabFits::Heads& LabFits::heads(const std::string& method, int layer, lab::Operand operand, int head_dim, int n_kv_heads) {
    const auto [it, fresh] = heads_.try_emplace({method, layer, operand});
    if (fresh) {
        const lab::Method& m = *methods_.at(method);
        lab::LayerSamples  samples{operand, head_dim, std::vector<lab::HeadSamples>(static_cast<size_t>(n_kv_heads))};
        if (m.needs_samples()) samples = layers_.at({layer, operand})->samples(operand);
        for (size_t h = 0; h < samples.heads.size(); h++) it->second.push_back(m.fit(samples, h));
    }
    return it->second;
}

} // namespace tightkv::tool
