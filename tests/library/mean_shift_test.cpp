// Adding one vector to all keys of a head changes no softmax. With that vector taken off as the mean it must change nothing here either,
// from 0 to 100 times the norm of the keys, but what f16 and f32 round.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "attention_case.h"

using namespace tightkv;
using namespace tightkv::test;

namespace {

constexpr int    kDim = 64, kHeads = 2, kGroup = 3, kCells = 200;
constexpr double u = 0x1p-24;

// Keys and shifts of whole numbers below 2048: key + shift is exact in f16, too.
struct Keys {
    std::vector<std::vector<float>> key, value; // [head * kCells + cell]
    std::vector<float>              shift[kHeads];

    explicit Keys(double ratio) {
        Random     random(81);
        const auto whole = [&](double deviation, float most) {
            std::vector<float> x = gaussian(random, kDim, deviation);
            for (float& v : x) v = std::clamp(std::nearbyint(v), -most, most);
            return x;
        };
        for (int i = 0; i < kHeads * kCells; i++) key.push_back(whole(3, 15)), value.push_back(gaussian(random, kDim));
        for (auto& s : shift) s = whole(3 * ratio, 2000);
    }
    std::vector<float> shifted(int h, int cell) const {
        std::vector<float> x = key[static_cast<size_t>(h * kCells + cell)];
        for (int i = 0; i < kDim; i++) x[i] += shift[h][i];
        return x;
    }
};

struct Operands {
    std::unique_ptr<TileStore>   k, v;
    std::unique_ptr<ExactTables> tables;
};

// What the adapter writes: codes of all rows, and exact rows. The codes of shifted keys are those of the others, so that
// only reading is looked at; EncodedLikeTheOthers looks at writing.
Operands operands(const Keys& keys, const char* f, bool shifted, int window, int n_tokens) {
    Operands o;
    EXPECT_TRUE(TileStore::create(*find_format(f), Operand::K, {1, kHeads, kDim, kCells}, o.k).ok());
    EXPECT_TRUE(TileStore::create(*find_format(f), Operand::V, {1, kHeads, kDim, kCells}, o.v).ok());
    std::vector<uint8_t> bytes(o.k->format().row_bytes(kDim));
    for (int h = 0; h < kHeads; h++)
        for (int c = 0; c < kCells; c++) {
            (void)o.k->write(0, h, c, keys.key[static_cast<size_t>(h * kCells + c)].data());
            (void)o.v->write(0, h, c, keys.value[static_cast<size_t>(h * kCells + c)].data());
        }
    if (shifted) {
        std::vector<std::shared_ptr<const Transform>> t;
        for (const auto& s : keys.shift) t.push_back(std::make_shared<const Transform>(kDim, s));
        o.k->set_transforms(t);
    }
    if (window > 0) {
        o.tables = std::make_unique<ExactTables>(4, window, o.k->shape(), o.v->shape());
        std::vector<float> row;
        const auto         rows = [&](const ExactLedger::Token& t, Operand op, int h) {
            const auto at = static_cast<size_t>(h * kCells + static_cast<int>(t.cell));
            row           = op == Operand::V ? keys.value[at] : shifted ? keys.shifted(h, static_cast<int>(t.cell)) : keys.key[at];
            return row.data();
        };
        for (int c = 0; c < kCells;) {
            std::vector<ExactLedger::Token> batch;
            for (const int end = c < kCells - n_tokens ? kCells - n_tokens : kCells; c < end; c++) batch.push_back({0, c, c});
            o.tables->write(batch, rows);
        }
    }
    return o;
}

std::vector<float> attend(Operands& o, const std::vector<float>& q, int n_tokens, const float* sinks, float softcap) {
    AttentionArgs      a;
    std::vector<float> out(size_t(n_tokens) * kHeads * kGroup * kDim);
    a.k = o.k.get(), a.v = o.v.get();
    a.n_kv_heads = kHeads, a.n_heads = kHeads * kGroup, a.n_tokens = n_tokens, a.n_kv = kCells;
    a.q = q.data(), a.out = out.data();
    a.q_strides = a.out_strides = {sizeof(float) * kDim * kHeads * kGroup, sizeof(float) * kDim, 0};
    a.scale = 0.125f, a.softcap = softcap, a.sinks = sinks;
    if (o.tables) o.tables->attach(a);
    AttentionJob job;
    EXPECT_TRUE(job.prepare(a, 2).ok());
    std::thread other([&] { job.run(); });
    job.run();
    other.join();
    return out;
}

} // namespace

TEST(MeanShift, AttentionDoesNotSeeIt) {
    IsaRestorer restore;
    for (const double ratio : {0.0, 1.0, 10.0, 100.0}) {
        const Keys keys(ratio);
        for (const char* f : {"turbo2", "turbo3", "turbo4", "turbo8", "turbo2t", "turbo3t", "turbo4t"})
            for (const int window : {0, 30, 1000})
                for (const int n_tokens : {1, 2, 12}) {
                    Random                   random(82);
                    const std::vector<float> q = gaussian(random, size_t(n_tokens) * kHeads * kGroup * kDim, 0.5);
                    Operands before = operands(keys, f, false, window, n_tokens), after = operands(keys, f, true, window, n_tokens);
                    for (const std::string& isa : isa_names()) {
                        ASSERT_TRUE(set_isa(isa).ok());
                        const std::vector<float> want = attend(before, q, n_tokens, nullptr, 0),
                                                 got  = attend(after, q, n_tokens, nullptr, 0);
                        SCOPED_TRACE(isa + ", " + f + ", ratio " + std::to_string(ratio) + ", window " + std::to_string(window) +
                                     ", tokens " + std::to_string(n_tokens));
                        if (window == 0) { // the kernels never meet the mean
                            ASSERT_EQ(got, want);
                            continue;
                        }
                        // Exact rows contain it: their scores and the part taken off are sums of d terms in f32, off by (d + 4) u Σ|q||x|
                        // together; the unshifted ones alike. A score off by D changes an output by (e^2D - 1) times the values' spread.
                        for (int t = 0; t < n_tokens; t++)
                            for (int head = 0; head < kHeads * kGroup; head++) {
                                const int    h    = head / kGroup;
                                const auto   at   = (size_t(t) * kHeads * kGroup + head) * kDim;
                                double       mean = 0, most = 0, value = 0;
                                const float* query = q.data() + at;
                                for (int i = 0; i < kDim; i++) mean += std::fabs(double(query[i]) * keys.shift[h][i]);
                                for (int c = 0; c < kCells; c++) {
                                    double sum = 0;
                                    for (int i = 0; i < kDim; i++) {
                                        const auto row = static_cast<size_t>(h * kCells + c);
                                        sum += std::fabs(double(query[i]) * keys.key[row][i]);
                                        value = std::max(value, 1.5 * std::fabs(double(keys.value[row][i]))); // decoded ones may be larger
                                    }
                                    most = std::max(most, sum);
                                }
                                const double error = (kDim + 4) * u * 0.125 * (2 * mean + 2 * most);
                                // 3e-6: vectors.h, the kernels' exponential, in both
                                const double bound = (std::expm1(2 * error) + 4 * 3e-6 + 2 * kCells * u) * 2 * value;
                                for (int i = 0; i < kDim; i++) ASSERT_NEAR(got[at + i], want[at + i], bound);
                            }
                    }
                }
    }
}

// The rows themselves: one round of the encoder is the same bit for bit (key + shift - shift is the key). Then it looks for the row that
// f16 keeps, and f16 rounds key + shift by |e| <= 2^-11 |key + shift| a round. A code that moves was at least half a gap off and moves by
// one: at most 2 |e|; the scale follows the norm, |e|, and rounds by 2^-11. Nearly all rows are done in one round.
TEST(MeanShift, EncodedLikeTheOthers) {
    for (const double ratio : {0.0, 1.0, 10.0, 100.0}) {
        const Keys keys(ratio);
        for (const Format* f : transformed_formats()) {
            double squares = 0, allowed = 0;
            for (int h = 0; h < kHeads; h++) {
                const Transform t(kDim, keys.shift[h]);
                for (int c = 0; c < kCells; c++) {
                    const std::vector<float>& key = keys.key[static_cast<size_t>(h * kCells + c)];
                    const std::vector<float>  x   = keys.shifted(h, c);
                    CodedRow                  plain, row;
                    ASSERT_EQ(encode_row(*f, kDim, key.data(), plain), RowStatus::kOk);
                    ASSERT_EQ(encode_row(*f, t, x.data(), row), RowStatus::kOk);
                    std::vector<float> want(kDim), got(kDim);
                    decode_row(*f, kDim, plain, want.data());
                    decode_row(*f, t, row, got.data());
                    double off = 0, size = 0, all = 0;
                    for (int i = 0; i < kDim; i++) {
                        off += std::pow(double(got[i]) - keys.shift[h][i] - want[i], 2);
                        size += double(want[i]) * want[i], all += double(x[i]) * x[i];
                    }
                    const double round = 3 * 0x1p-11 * std::sqrt(all) + 0x1p-11 * std::sqrt(size);
                    ASSERT_LE(std::sqrt(off), 8 * round) << f->name << ", ratio " << ratio << ", key " << c;
                    squares += off, allowed += round * round;
                }
            }
            EXPECT_LE(std::sqrt(squares), std::sqrt(allowed)) << f->name << ", ratio " << ratio;
        }
    }
}

// A soft cap and an attention sink do see a score's size: they must get the whole of it, mean included. Held against keys that were never
// apart from their mean: f16 stores, which have no transform.
TEST(MeanShift, SoftCapAndSinksSeeTheWholeScore) {
    IsaRestorer restore;
    for (const double ratio : {0.0, 0.1, 1.0}) {
        const Keys               keys(ratio);
        Random                   random(83);
        const std::vector<float> sinks = gaussian(random, kHeads * kGroup, 3);
        for (const float softcap : {0.0f, 5.0f})
            for (const int window : {0, 1000}) // with it all scores come from the exact rows
                for (const int n_tokens : {1, 12}) {
                    const std::vector<float> q = gaussian(random, size_t(n_tokens) * kHeads * kGroup * kDim, 0.3);
                    Operands codes = operands(keys, "turbo8", true, window, n_tokens), whole = operands(keys, "f16", true, 0, n_tokens);
                    for (int h = 0; h < kHeads; h++)
                        for (int c = 0; c < kCells; c++) {
                            (void)whole.k->write(0, h, c, keys.shifted(h, c).data());
                            if (window == 0) { // the same values: those of the codes
                                std::vector<float> x(kDim);
                                codes.v->read(0, h, c, x.data());
                                (void)whole.v->write(0, h, c, x.data());
                            }
                        }
                    for (const std::string& isa : isa_names()) {
                        ASSERT_TRUE(set_isa(isa).ok());
                        const std::vector<float> want = attend(whole, q, n_tokens, sinks.data(), softcap),
                                                 got  = attend(codes, q, n_tokens, sinks.data(), softcap);
                        double squares = 0, size = 0;
                        for (size_t i = 0; i < want.size(); i++)
                            squares += std::pow(double(got[i]) - want[i], 2), size += double(want[i]) * want[i];
                        // turbo8 keys are off by 0.7 % (44 dB): scores of deviation 0.125 * 0.3 * 3 * 8 = 0.9 by 0.006, outputs alike;
                        // values that went through f16 by 2^-11. Without the mean's part the sink is off by e^0.9 at ratio 1.
                        EXPECT_LE(std::sqrt(squares / size), 0.02)
                            << isa << ", softcap " << softcap << ", window " << window << ", ratio " << ratio << ", tokens " << n_tokens;
                    }
                }
    }
}
