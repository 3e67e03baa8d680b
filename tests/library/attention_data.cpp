// The rows, queries and masks of an AttentionCase, and how they go through the library.
#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "attention_case.h"
#include "base/half.h"
#include "dense_transform.h"

namespace tightkv::test {

std::string AttentionCase::name() const {
    std::ostringstream s;
    s << "k " << k << " v " << v << ", d " << dk << "/" << dv << ", " << n_kv_heads << " KV heads x " << group << ", " << n_tokens
      << " tokens, " << n_streams << " streams, n_kv " << n_kv << ", mask " << int(mask) << ", max_bias " << max_bias << ", softcap "
      << softcap << ", terms " << terms << ", sinks " << sinks << ", threads " << threads << ", offsets " << offsets << ", means " << k_mean
      << "/" << v_mean << ", dense " << dense << ", sink " << sink << ", window " << window << ", batches of " << written_by << ", reuse "
      << reuse;
    return s.str();
}

CaseTransform::CaseTransform(Random& random, int d, double mean_deviation, bool dense) {
    const std::vector<float> m = gaussian(random, static_cast<size_t>(d), mean_deviation);
    mean.assign(m.begin(), m.end());
    if (dense) {
        const DenseTransform made = random_dense(random, d, 2);
        inverse.assign(made.inverse32.begin(), made.inverse32.end());
        columns.assign(static_cast<size_t>(d), 0.0);
        for (size_t i = 0; i < inverse.size(); i++) columns[i % columns.size()] += inverse[i] * inverse[i];
        t = make_transform(made, m);
    } else t = std::make_shared<const Transform>(d, m);
}

std::vector<double> CaseTransform::decode(const std::vector<double>& y) const {
    std::vector<double> x = inverse.empty() ? oracle::inverse(y) : product(y, false, false);
    for (size_t i = 0; i < x.size(); i++) x[i] += mean[i];
    return x;
}

std::vector<double> CaseTransform::product(const std::vector<double>& y, bool transposed, bool absolute) const {
    const size_t        d = y.size();
    std::vector<double> x(d, 0.0);
    const auto          add = [&](auto term) {
        for (size_t r = 0; r < d; r++) {
            const double *const row = &inverse[r * d], *const from = y.data();
            double* const to = x.data();
            if (!transposed) to[r] = sum_of(d, [=](size_t i) { return term(row[i], from[i]); });
            for (size_t i = 0; i < d && transposed; i++) to[i] += term(row[i], from[r]);
        }
    };
    if (absolute) add([](double m, double v) { return std::fabs(m * v); });
    else add([](double m, double v) { return m * v; });
    return x;
}

AttentionData::AttentionData(const AttentionCase& c, uint64_t seed) : c_(c), random_(seed) {
    const int     more  = c.offsets ? 1 : 0;
    const int64_t cells = c.n_kv + 128 * more + 5;
    make(*find_format(c.k), Operand::K, {c.n_streams + more, c.n_kv_heads + more, c.dk, cells}, k_);
    make(*find_format(c.v), Operand::V, {c.n_streams + more, c.n_kv_heads + more, c.dv, cells}, v_);
    q_.resize(q_at(c.n_streams, 0, 0));
    for (float& x : q_) x = static_cast<float>(c.q_deviation * random_.normal());
    for (int h = 0; h < c.n_heads(); h++) sinks_.push_back(static_cast<float>(2 * random_.normal()));
    mask32_.assign(size_t(c.n_streams) * c.n_tokens * mask_row(), -INFINITY);
    for (int s = 0; s < c.n_streams; s++)
        for (int t = 0; t < c.n_tokens; t++)
            for (int j = 0; j < c.n_kv; j++) {
                const bool causal = j <= c.n_kv - c.n_tokens + t, hole = random_.below(8) == 0, dead_row = c.n_tokens > 2 && t == 1;
                if (!causal || hole || dead_row) continue;
                mask32_[mask_at(s, t) + j] = c.max_bias > 0 ? static_cast<float>(std::max(-2000, j - (c.n_kv - c.n_tokens + t)))
                                             : random_.below(4) || !c.terms ? 0.0f
                                                                            : -0.5f * random_.below(8);
            }
    for (const float m : mask32_) mask16_.push_back(float_to_half(m)); // small multiples of 1/2: exact
    if (c.exact()) write_exact_rows();
}

std::vector<float> AttentionData::run(float scale_factor, int mask_shift) {
    std::vector<float> out(size_t(c_.n_streams) * c_.n_tokens * c_.n_heads() * (c_.dv + kMargin), kCanary);
    AttentionArgs      a;
    a.k = k_.get(), a.v = v_.get();
    if (c_.offsets)
        a.k_stream0 = a.v_stream0 = a.k_head0 = a.v_head0 = 1, a.k_cell0 = store_cell(false, 0), a.v_cell0 = store_cell(true, 0);
    a.n_streams = c_.n_streams, a.n_kv_heads = c_.n_kv_heads, a.n_heads = c_.n_heads(), a.n_tokens = c_.n_tokens, a.n_kv = c_.n_kv;
    a.q              = q_.data();
    a.q_strides      = {sizeof(float) * q_at(0, 1, 0), sizeof(float) * q_at(0, 0, 1), sizeof(float) * q_at(1, 0, 0)};
    const size_t row = sizeof(float) * (c_.dv + kMargin);
    a.out            = out.data();
    a.out_strides    = {row * c_.n_heads(), row, row * c_.n_heads() * c_.n_tokens};
    a.scale          = static_cast<float>(c_.scale()) * scale_factor;
    a.softcap = c_.softcap, a.max_bias = c_.max_bias;
    a.mask_type       = c_.mask;
    const size_t cell = c_.mask == MaskType::kF16 ? 2 : 4;
    if (c_.mask == MaskType::kF16) a.mask = mask16_.data() + mask_shift;
    if (c_.mask == MaskType::kF32) a.mask = mask32_.data() + mask_shift;
    a.mask_strides = {cell * mask_row(), 0, cell * mask_row() * c_.n_tokens};
    if (c_.sinks) a.sinks = sinks_.data();
    a.sparse_v = c_.sparse_v;
    if (tables_) tables_->attach(a);

    AttentionJob job;
    const Status s = job.prepare(a, c_.threads);
    if (!s.ok()) throw std::runtime_error(s.message());
    std::vector<std::thread> others;
    for (int i = 1; i < c_.threads; i++) others.emplace_back([&] { job.run(); });
    job.run();
    for (std::thread& t : others) t.join();
    v_tiles_ = job.v_tiles();
    return out;
}

void AttentionData::make(const Format& f, Operand op, const StoreShape& shape, std::unique_ptr<TileStore>& store) {
    if (Status s = TileStore::create(f, op, shape, store); !s.ok()) throw std::runtime_error(s.message());
    const bool k = op == Operand::K;
    if (const double mean = k ? c_.k_mean : c_.v_mean; mean > 0 || c_.dense) {
        std::vector<std::shared_ptr<const Transform>> per_head;
        for (int h = 0; h < shape.n_kv_heads; h++)
            (k ? transforms_k_ : transforms_v_).emplace_back(random_, shape.head_dim, mean, c_.dense),
                per_head.push_back((k ? transforms_k_ : transforms_v_).back().t);
        store->set_transforms(per_head);
    }
    for (int s = 0; s < shape.n_streams; s++)
        for (int h = 0; h < shape.n_kv_heads; h++)
            for (int64_t c = 0; c < shape.n_cells; c++) write_random(*store, s, h, c);
}

void AttentionData::write_random(TileStore& store, int s, int h, int64_t cell) {
    const bool         k  = store.operand() == Operand::K;
    const auto&        of = k ? transforms_k_ : transforms_v_;
    std::vector<float> x  = gaussian(random_, static_cast<size_t>(store.shape().head_dim), k ? 1 : std::exp2(random_.below(3) - 1));
    for (size_t i = 0; i < x.size() && !of.empty(); i++) x[i] += static_cast<float>(of[static_cast<size_t>(h)].mean[i]);
    if (store.write(s, h, cell, x.data()) != RowStatus::kOk) throw std::runtime_error("write");
    if (c_.exact()) original_[{k, s, h, cell}] = x;
}

void AttentionData::write_exact_rows() {
    tables_         = std::make_unique<ExactTables>(c_.sink, c_.window, k_->shape(), v_->shape());
    const auto rows = [this](const ExactLedger::Token& t, Operand op, int h) {
        return original_.at({op == Operand::K, t.stream, h, t.cell}).data();
    };
    const auto token = [&](int s, int j) { return ExactLedger::Token{store_stream(s), store_cell(false, j), j % 40}; };
    const auto write = [&](int j0, int j1) {
        std::vector<ExactLedger::Token> tokens;
        for (int s = 0; s < c_.n_streams; s++)
            for (int j = j0; j < j1; j++) tokens.push_back(token(s, j));
        if (j1 > j0) tables_->write(tokens, rows);
    };
    const int before = c_.n_kv - c_.n_tokens;
    for (int j = 0; j < before; j += c_.written_by) {
        write(j, std::min(before, j + c_.written_by));
        if (!c_.reuse || j < 20) continue;
        const int          s = random_.below(c_.n_streams), again = random_.below(j);
        ExactLedger::Token t = token(s, again);
        for (int h = 0; h < k_->shape().n_kv_heads; h++) write_random(*k_, t.stream, h, t.cell), write_random(*v_, t.stream, h, t.cell);
        switch (random_.below(4)) {
        case 0: tables_->forget(t.stream, t.cell); break;
        case 1: tables_->adopt(t.stream, t.cell, random_.below(2) == 0, rows); break;
        default: tables_->write({t}, rows);
        }
    }
    write(before, c_.n_kv);
}

void AttentionData::put_exact_rows(Rows& r, bool v, int s, int h, int t) const {
    const size_t d = static_cast<size_t>(v ? c_.dv : c_.dk);
    for (int j = 0; j < c_.n_kv; j++) {
        const int64_t cell    = store_cell(v, j);
        const auto    visible = [&](int64_t other) {
            const int64_t key = other - store_cell(v, 0);
            return key >= 0 && key < c_.n_kv &&
                   (c_.mask == MaskType::kNone || mask32_[mask_at(s, t) + static_cast<size_t>(key)] != -INFINITY);
        };
        if (!tables_ || !tables_->exact(store_stream(s), cell, t, c_.n_tokens, visible)) continue;
        const std::vector<float>& x = original_.at({!v, store_stream(s), store_head(h), cell});
        for (size_t i = 0; i < d; i++) r.decoded[size_t(j) * d + i] = r.plain[size_t(j) * d + i] = half_to_float(float_to_half(x[i]));
        r.exact[size_t(j)] = true;
    }
}

const CaseTransform* AttentionData::transform_of(bool v, int h) const {
    const auto& of = v ? transforms_v_ : transforms_k_;
    return of.empty() || !(v ? v_ : k_)->format().transformed() ? nullptr : &of[static_cast<size_t>(store_head(h))];
}

AttentionData::Rows AttentionData::rows_of(const TileStore& store, bool v, int s, int h) const {
    const int            d = store.shape().head_dim;
    const auto&          f = store.format();
    Rows                 r;
    std::vector<uint8_t> bytes(f.row_bytes(d));
    std::vector<float>   x(static_cast<size_t>(d));
    r.exact.assign(static_cast<size_t>(c_.n_kv), false);
    const CaseTransform* own = transform_of(v, h);
    for (int j = 0; j < c_.n_kv; j++) {
        store.read(store_stream(s), store_head(h), store_cell(v, j), x.data());
        r.plain.insert(r.plain.end(), x.begin(), x.end());
        if (!f.transformed()) {
            r.decoded.insert(r.decoded.end(), x.begin(), x.end());
            continue;
        }
        store.read_canonical(store_stream(s), store_head(h), store_cell(v, j), bytes.data());
        CodedRow coded;
        unpack_row(f, d, bytes.data(), coded);
        const std::vector<double> y = oracle::levels(f, d, coded), z = own ? own->decode(y) : oracle::inverse(y);
        r.transformed.insert(r.transformed.end(), y.begin(), y.end());
        r.decoded.insert(r.decoded.end(), z.begin(), z.end());
        r.scale.push_back(half_to_float(coded.scale));
    }
    return r;
}

void AttentionData::read_rows() {
    rows_.clear();
    for (int s = 0; s < c_.n_streams; s++)
        for (int kv = 0; kv < c_.n_kv_heads; kv++) rows_.push_back(rows_of(*k_, false, s, kv)), rows_.push_back(rows_of(*v_, true, s, kv));
}

} // namespace tightkv::test
