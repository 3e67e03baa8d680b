#include "contender.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "base/half.h"
#include "cache/read_path.h"
#include "huge_buffer.h"
#include "own_kernels.h"

namespace tightkv::bench {

double Contender::time(double least_seconds) {
    const auto turn = [&] { attend(next_), next_ = (next_ + 1) % layers; };
    if (last_seconds_ < 0.1) turn(); // wakes the threads; beside a long operation that does not count
    const auto start   = std::chrono::steady_clock::now();
    double     seconds = 0;
    int        n       = 0;
    do {
        turn(), n++;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    } while (seconds < least_seconds);
    return last_seconds_ = seconds / n;
}

Verdict Contender::check(const AttentionData& data) {
    attend(layers - 1);
    return check_output(
        data, [&](int kv_head) { return rows(kv_head); }, output());
}

int layers_for(double layer_bytes, double total) { return std::max(1, static_cast<int>(std::min(1e5, std::ceil(total / layer_bytes)))); }

double kv_bytes(const AttentionShape& s, double row_bytes) { return 2 * row_bytes * s.n_kv_heads * static_cast<double>(s.n_kv); }

namespace {

class Tightkv : public Contender {
public:
    Tightkv(const Format& f, const AttentionData& data, double total, ThreadTeam& team)
        : shape_(data.shape), team_(team), out_(shape_.rows_floats()) {
        name = f.name, ours = true;
        layer_bytes = kv_bytes(shape_, static_cast<double>(f.row_bytes(shape_.head_dim)));
        // A few keys take a whole tile: not more than four times what was asked for.
        const int64_t tiles = (shape_.n_kv + kTileTokens - 1) / kTileTokens;
        const double  taken = 2.0 * shape_.n_kv_heads * static_cast<double>(tiles) * static_cast<double>(tile_bytes(f, shape_.head_dim));
        layers              = layers_for(f.transformed() ? std::max(layer_bytes, taken / 4) : layer_bytes, total);
        fill(f, Operand::K, k_), fill(f, Operand::V, v_);
        args_.k = k_.get(), args_.v = v_.get();
        args_.n_kv_heads = shape_.n_kv_heads, args_.n_heads = shape_.n_heads, args_.n_tokens = shape_.n_tokens, args_.n_kv = shape_.n_kv;
        args_.q = data.q.data(), args_.out = out_.data();
        args_.q_strides.token = args_.out_strides.token = sizeof(float) * shape_.row(1, 0);
        args_.q_strides.head = args_.out_strides.head = sizeof(float) * shape_.row(0, 1);
        args_.scale = shape_.scale(), args_.mask_type = MaskType::kF16, args_.mask = data.mask.data();
        args_.mask_strides.token = sizeof(uint16_t) * static_cast<size_t>(shape_.n_kv);
    }
    void attend(int layer) override {
        args_.k_stream0 = args_.v_stream0 = layer;
        if (const Status s = job_.prepare(args_, team_.size()); !s.ok()) throw std::runtime_error(s.message());
        team_.run([this](int) { job_.run(); });
    }
    const float* output() const override { return out_.data(); }
    HeadRows     rows(int kv_head) const override { return rows_of(*k_, *v_, 0, kv_head, shape_.n_kv); }
    double       huge() const override { return huge_share(k_->tiles(0, 0).tiles, k_->bytes()); }

private:
    // Layers are streams of one store; the first is written row by row, the others are copies of its bytes.
    void fill(const Format& f, Operand op, std::unique_ptr<TileStore>& store) {
        if (const Status s = TileStore::create(f, op, {layers, shape_.n_kv_heads, shape_.head_dim, shape_.n_kv}, store); !s.ok())
            throw std::runtime_error(s.message());
        std::vector<float> x(static_cast<size_t>(shape_.head_dim));
        for (int h = 0; h < shape_.n_kv_heads; h++)
            for (int64_t j = 0; j < shape_.n_kv; j++) cached_row(op, h, j, x), store->write(0, h, j, x.data());
        const uint8_t* const first = store->tiles(0, 0).tiles;
        for (int l = 1; l < layers; l++)
            std::memcpy(const_cast<uint8_t*>(store->tiles(l, 0).tiles), first, store->bytes() / static_cast<size_t>(layers));
    }

    AttentionShape             shape_;
    ThreadTeam&                team_;
    std::unique_ptr<TileStore> k_, v_;
    std::vector<float>         out_;
    AttentionArgs              args_;
    AttentionJob               job_;
};

class Own : public Contender {
public:
    Own(const std::string& which, const AttentionData& data, double total, ThreadTeam& team)
        : data_(data), kernel_(which == "f16" ? own_f16_attend : own_f32_attend), team_(team), out_(data.shape.rows_floats()),
          operand_bytes_(kv_bytes(data.shape, 2.0 * data.shape.head_dim) / 2), count_(layers_for(2 * operand_bytes_, total)),
          cache_(static_cast<size_t>(2 * operand_bytes_) * static_cast<size_t>(count_)) {
        name = "own:" + which, layer_bytes = 2 * operand_bytes_, layers = count_;
        const AttentionShape& s = data.shape;
        std::vector<float>    x(static_cast<size_t>(s.head_dim));
        for (const Operand op : {Operand::K, Operand::V}) {
            uint16_t* row = operand(0, op);
            for (int h = 0; h < s.n_kv_heads; h++)
                for (int64_t j = 0; j < s.n_kv; j++) {
                    cached_row(op, h, j, x);
                    for (const float v : x) *row++ = float_to_half(v);
                }
        }
        for (int l = 1; l < layers; l++) std::memcpy(operand(l, Operand::K), operand(0, Operand::K), static_cast<size_t>(layer_bytes));
    }
    void attend(int layer) override {
        kernel_({data_.shape, operand(layer, Operand::K), operand(layer, Operand::V), data_.q.data(), out_.data()}, team_);
    }
    const float* output() const override { return out_.data(); }
    HeadRows     rows(int kv_head) const override {
        HeadRows     r;
        const size_t n = static_cast<size_t>(data_.shape.n_kv) * data_.shape.head_dim, at = n * static_cast<size_t>(kv_head);
        for (size_t i = at; i < at + n; i++) {
                r.k.push_back(half_to_float(operand(0, Operand::K)[i]));
                r.v.push_back(half_to_float(operand(0, Operand::V)[i]));
        }
        return r;
    }
    double huge() const override { return huge_share(cache_.data(), cache_.size()); }

private:
    uint16_t* operand(int layer, Operand op) const { // [kv_head][n_kv][head_dim]
        return reinterpret_cast<uint16_t*>(cache_.data() + static_cast<size_t>(operand_bytes_ * (2 * layer + (op == Operand::V))));
    }

    const AttentionData& data_;
    OwnKernel*           kernel_;
    ThreadTeam&          team_;
    std::vector<float>   out_;
    double               operand_bytes_;
    int                  count_;
    HugeBuffer           cache_;
};

} // namespace

std::unique_ptr<Contender> make_tightkv(const Format& f, const AttentionData& data, double total_bytes, ThreadTeam& team) {
    return std::make_unique<Tightkv>(f, data, total_bytes, team);
}

std::unique_ptr<Contender> make_own(const std::string& which, const AttentionData& data, double total_bytes, ThreadTeam& team) {
    return std::make_unique<Own>(which, data, total_bytes, team);
}

} // namespace tightkv::bench
