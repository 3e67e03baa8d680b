// Measured cost of coding: rows of chosen layers are replaced in an f16 cache by what their codes decode to.
#include <map>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/half.h"
#include "budget.h"
#include "codec/row.h"
#include "cpu/kernel_table.h"
#include "engine_llama_rows.h"
#include "errors.h"

namespace tightkv::tool {

namespace {

constexpr int     kExact = 4; // rows at the beginning that stay as they are
const CacheChoice kF16{.name = "f16", .stock = true, .spec = {}};

// (index of the layer in the profile, operand)
using Unit = std::pair<size_t, tightkv::Operand>;

class Recoder : public RowObserver {
public:
    explicit Recoder(const Profile& p) {
        for (size_t i = 0; i < p.layers.size(); i++) {
            index_[p.layers[i].block] = i;
            for (const auto op : {tightkv::Operand::K, tightkv::Operand::V}) transforms_[{i, op}] = p.transforms(p.layers[i], op, true);
        }
    }
    std::map<Unit, FormatId> formats; // others stay exact

    void keys_values(const WrittenRows& w) override {
        const Unit unit{index_.at(w.layer), w.operand == Operand::key ? tightkv::Operand::K : tightkv::Operand::V};
        const auto found = formats.find(unit);
        if (found == formats.end()) return;
        const Format& f = format(found->second);
        const auto    d = static_cast<size_t>(w.head_dim), heads = static_cast<size_t>(w.n_kv_heads);
        CodedRow      coded;
        float         y[kMaxHeadDim];
        for (size_t t = 0; t < static_cast<size_t>(w.n_tokens); t++) {
            if (w.cells[t] % w.cells_per_stream < kExact) continue;
            const std::span<uint16_t> out = w.cached(w.cells[t]);
            for (size_t h = 0; h < heads; h++) {
                const Transform& transform = *transforms_.at(unit)[h];
                (void)kernels().encode(f, transform, &w.rows[(t * heads + h) * d], coded);
                kernels().decode(f, transform, coded, y);
                for (size_t i = 0; i < d; i++) out[h * d + i] = float_to_half(y[i]);
            }
        }
    }

private:
    std::map<int, size_t>                                         index_; // by block
    std::map<Unit, std::vector<std::shared_ptr<const Transform>>> transforms_;
};

// KLD of a recoded cache against an exact one, whose logits are computed once.
class Judge {
public:
    Judge(const Model& m, std::span<const std::vector<Token>> chunks, Recoder& recoder, int threads, Progress& progress)
        : chunks_(chunks), progress_(progress), n_(static_cast<int>(chunks.front().size())), recoded_(m, kF16, options(threads, &recoder)) {
        Context exact(m, kF16, options(threads, nullptr));
        for (const std::vector<Token>& c : chunks)
            if (!run(exact, c, [&](std::span<const float> logits, Token) { reference_.emplace_back(logits.begin(), logits.end()); }))
                return;
        complete_ = true;
    }
    // False: interrupted.
    bool measure(Summary& out) {
        Scores            scores(chunks_.size());
        size_t            i = 0;
        ReferencePosition r;
        for (size_t c = 0; complete_ && c < chunks_.size(); c++)
            complete_ = run(recoded_, chunks_[c], [&](std::span<const float> logits, Token next) {
                set_reference(r, reference_[i], next);
                const PositionScore s = score(r, reference_[i++], logits, next);
                if (!finite(s)) throw failure("recoded rows gave logits that are not finite");
                scores.add(c, s);
            });
        if (complete_) out = scores.summary();
        return complete_;
    }

private:
    ContextOptions options(int threads, RowObserver* observer) const {
        return {.tokens = n_, .batch = n_, .outputs = n_, .threads = threads, .observer = observer};
    }
    template <class F> bool run(Context& context, const std::vector<Token>& chunk, const F& each) {
        std::vector<BatchToken> batch;
        for (int i = 0; i < n_; i++) batch.push_back({chunk[static_cast<size_t>(i)], i, 0, i >= n_ / 2 && i + 1 < n_});
        context.clear();
        if (!context.decode(batch)) return false;
        for (int i = n_ / 2; i + 1 < n_; i++) each(context.logits(i), chunk[static_cast<size_t>(i + 1)]);
        progress_.advance(1);
        return true;
    }

    std::span<const std::vector<Token>> chunks_;
    Progress&                           progress_;
    int                                 n_;
    Context                             recoded_;
    std::vector<std::vector<float>>     reference_; // logits of the scored positions
    bool                                complete_ = false;
};

std::vector<Unit> units_of(const Profile& p) {
    std::vector<Unit> units;
    for (size_t i = 0; i < p.layers.size(); i++)
        for (const auto op : {tightkv::Operand::K, tightkv::Operand::V}) units.emplace_back(i, op);
    return units;
}

} // namespace

double budget_steps(const Profile& p, size_t probe_chunks, size_t held_out_chunks) {
    return static_cast<double>((1 + 2 * p.layers.size()) * probe_chunks + 3 * held_out_chunks);
}

BudgetResult spend_budget(const Model& model, Profile& p, double bits, std::span<const std::vector<Token>> probe,
                          std::span<const std::vector<Token>> held_out, int threads, Progress& progress) {
    const std::vector<Unit>         units   = units_of(p);
    const std::vector<BudgetFormat> formats = budget_formats(p.layers.front().head_dim_k);
    std::vector<BudgetUnit>         costs;
    for (const auto& [i, op] : units) {
        const int d = p.layers[i].head_dim(op);
        costs.push_back({d, static_cast<double>(d) * static_cast<double>(p.layers[i].heads(op).size()), 0});
    }
    BudgetResult r;
    bool         affordable = false;
    for (const BudgetFormat& f : formats) {
        const double b = average_bits(costs, std::vector<FormatId>(units.size(), f.id));
        if (b <= bits * (1 + 1e-12)) r.uniform = f.id, r.uniform_bits = b, affordable = true;
    }
    if (!affordable)
        throw usage_error(fmt::format("--budget {} is too small; accepted: {:.4g} bits or more", bits,
                                      average_bits(costs, std::vector<FormatId>(units.size(), formats.front().id))));
    r.interrupted = true;
    Recoder recoder(p);
    {
        Judge judge(model, probe, recoder, threads, progress);
        for (size_t u = 0; u < units.size(); u++) {
            progress.stage(
                fmt::format("{} of layer {}", units[u].second == tightkv::Operand::K ? "K" : "V", p.layers[units[u].first].block));
            recoder.formats = {{units[u], formats.front().id}};
            Summary s;
            if (!judge.measure(s)) return r;
            costs[u].kld = s.kld;
        }
    }
    const std::vector<FormatId> chosen = choose_formats(costs, formats, bits);
    r.chosen_bits                      = average_bits(costs, chosen);
    progress.stage("held-out text");
    Judge judge(model, held_out, recoder, threads, progress);
    for (const Unit& u : units) recoder.formats[u] = r.uniform;
    if (!judge.measure(r.uniform_kld)) return r;
    for (size_t u = 0; u < units.size(); u++) {
        recoder.formats[units[u]]                                          = chosen[u];
        LayerProfile& l                                                    = p.layers[units[u].first];
        (units[u].second == tightkv::Operand::K ? l.k_format : l.v_format) = chosen[u];
    }
    if (!judge.measure(r.chosen_kld)) return r;
    r.interrupted = false;
    return r;
}

} // namespace tightkv::tool
