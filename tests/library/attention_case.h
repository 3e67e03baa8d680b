// One attention operation as data, run through AttentionJob and held against the fp64 oracle within derived bounds: attention_bounds.cpp.
#pragma once
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "cache/read_path.h"
#include "codec/oracle.h"
#include "exact_tables.h"
#include "test_data.h"

namespace tightkv::test {

struct AttentionCase {
    const char* k  = "turbo4";
    const char* v  = "turbo3";
    int         dk = 64, dv = 64, n_kv_heads = 2, group = 1, n_tokens = 1, n_streams = 1;
    int         n_kv     = 65;
    MaskType    mask     = MaskType::kNone;
    float       max_bias = 0, softcap = 0;
    bool        sinks       = false;
    int         threads     = 1;
    bool        terms       = true;  // the mask has other values than 0 and -inf; ALiBi always has
    bool        offsets     = false; // streams, heads and cells do not start at 0
    double      q_deviation = 1;
    float       sparse_v    = 0;
    double      k_mean = 0, v_mean = 0; // deviation of the heads' means, which rows of unit deviation lie around
    bool        dense = false;          // dense transforms, other ones for every head
    int         sink = 0, window = 0;   // exact rows
    int         written_by = 7;         // tokens of the batches before the last one, which holds the queries
    bool        reuse      = false;     // cells are written again, forgotten, and taken over from elsewhere

    std::string name() const;
    int         n_heads() const { return n_kv_heads * group; }
    bool        few_rows() const {
               return n_tokens * group <= kMaxDecodeRows || (n_tokens == 1 && group < 16);
    } // AttentionJob: these stay on the packed codes
    double scale() const { return 1.0 / std::sqrt(dk); }
    bool   exact() const { return sink > 0 || window > 0; }
};

// Σ term(i) of i < n, in four sums side by side: in one, every term waits for the one before it.
template <class Term> double sum_of(size_t n, Term term) {
    double sum[4] = {};
    size_t i      = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t lane = 0; lane < 4; lane++) sum[lane] += term(i + lane);
    for (; i < n; i++) sum[0] += term(i);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The transform of one head, as the library has it and in double.
struct CaseTransform {
    std::shared_ptr<const Transform> t;
    std::vector<double>              mean, inverse; // [d]; [d][d] row-major, empty: Hadamard
    std::vector<double>              columns;       // [d] of a dense T^-1: what a unit error of y becomes, squared

    CaseTransform(Random& random, int d, double mean_deviation, bool dense);
    std::vector<double> decode(const std::vector<double>& y) const;
    std::vector<double> query(const std::vector<double>& q) const { return inverse.empty() ? oracle::forward(q) : product(q, true, false); }
    // |T^-1| y, or |T^-T| y; dense only.
    std::vector<double> absolute(const std::vector<double>& y, bool transposed) const { return product(y, transposed, true); }

private:
    std::vector<double> product(const std::vector<double>& y, bool transposed, bool absolute) const;
};

class AttentionData {
public:
    explicit AttentionData(const AttentionCase& c, uint64_t seed = 71);

    // The data of a test may be changed before run().
    TileStore&          k() { return *k_; }
    TileStore&          v() { return *v_; }
    std::vector<float>& q() { return q_; }
    std::vector<float>& mask() { return mask32_; }
    float*              query(int stream, int token, int head) { return &q_[q_at(stream, token, head)]; }
    int                 store_stream(int s) const { return s + (c_.offsets ? 1 : 0); }
    int                 store_head(int h) const { return h + (c_.offsets ? 1 : 0); }
    int64_t             store_cell(bool v, int64_t j) const { return j + (c_.offsets ? (v && !c_.exact() ? 128 : 64) : 0); }
    size_t              mask_row() const { return static_cast<size_t>(c_.n_kv) + 3; } // rows not aligned on purpose
    size_t              mask_at(int s, int t) const { return (size_t(s) * c_.n_tokens + t) * mask_row(); }

    // [stream][token][head][dv] with a margin after every row that must stay as it is.
    std::vector<float> run(float scale_factor = 1.0f, int mask_shift = 0);
    TileCounts         v_tiles() const { return v_tiles_; } // of the last run
    const float*       row(const std::vector<float>& out, int s, int t, int h) const {
              return &out[((size_t(s) * c_.n_tokens + t) * c_.n_heads() + h) * (c_.dv + kMargin)];
    }

    // What the reference does not depend on: f16 and f32 masks hold the same values (not kNone), threads share the work.
    void ask_with(MaskType mask, int threads) { c_.mask = mask, c_.threads = threads; }

    // Computes the oracle and the bounds once, for what the stores hold now.
    void make_reference() { read_rows(), ask_oracle(true); }
    // In parts, for tests that ask the same rows several times or need no bounds: relative_rms() does not.
    void read_rows();
    void ask_oracle(bool with_bounds);
    // Empty when `out` is within all bounds of the reference, for the ISA level named; else the first complaint.
    std::string complaint(const std::vector<float>& out, const std::string& isa) const;
    double      relative_rms(const std::vector<float>& out) const;

private:
    static constexpr int   kMargin = 3;
    static constexpr float kCanary = 1234.5f;

    struct Reference {
        std::vector<double> out, bound_f32; // [dv]; Σ p|v| too
        struct Integer {
            std::vector<double> bound;        // [dv], worst case on top of bound_f32
            double              expected = 0; // Σ_x of the squared error
        };
        double                 freedom = 1; // effective number of independent errors
        std::array<Integer, 2> integer;     // of the path the case takes; 0: avx2, 1: the other levels
    };

    size_t q_at(int s, int t, int h) const {
        return (size_t(s) * c_.n_heads() + h) * (size_t(c_.n_tokens) * (c_.dk + 5)) + size_t(t) * (c_.dk + 5);
    }
    double slope(int h) const; // ALiBi as ggml has it
    void   make(const Format& f, Operand op, const StoreShape& shape, std::unique_ptr<TileStore>& store);
    // V: row scales must matter.
    void write_random(TileStore& store, int s, int h, int64_t cell);
    // The cells that are asked for, in batches; the last one holds the queries.
    void write_exact_rows();
    // Rows of one head: decoded (out of the transform), transformed, and fp16 scale.
    struct Rows {
        std::vector<double> decoded, transformed, scale;
        std::vector<float>  plain; // TileStore::read
        std::vector<bool>   exact; // not from the codes
    };
    // The rows as a query sees them that has some of them exactly.
    void                 put_exact_rows(Rows& r, bool v, int s, int h, int t) const;
    const CaseTransform* transform_of(bool v, int h) const; // nullptr: the default
    Rows                 rows_of(const TileStore& store, bool v, int s, int h) const;
    std::vector<double>  plain_f32(const float* q, const Rows& k, const Rows& v, const std::vector<float>& bias, const float* sink) const;
    double               f32_score_error(const std::vector<double>& q, const CaseTransform* of_k, const Rows& k) const;
    void integer_bounds(const std::vector<double>& q, int kv_head, const Rows& k, const Rows& v, const oracle::Attended& want,
                        Reference& ref) const;

    AttentionCase              c_;
    TileCounts                 v_tiles_;
    Random                     random_;
    std::vector<CaseTransform> transforms_k_, transforms_v_;                     // [head of the store]; empty: the default
    std::map<std::tuple<bool, int, int, int64_t>, std::vector<float>> original_; // (K?, stream, head, cell), where exact rows are kept
    std::unique_ptr<ExactTables>                                      tables_;
    std::unique_ptr<TileStore>                                        k_, v_;
    std::vector<float>                                                q_, sinks_, mask32_;
    std::vector<uint16_t>                                             mask16_;
    std::vector<Rows>                                                 rows_;      // [stream][KV head][K, V], out of the codes
    std::vector<Reference>                                            reference_; // [stream][token][head]
    double                                                            plain_error_ = 0;
};

// Levels of this machine by name; tests loop over them.
std::vector<std::string> isa_names();

class IsaRestorer { // leaves the chosen level as it was
public:
    ~IsaRestorer() { (void)set_isa(before_).ok(); }

private:
    std::string before_ = kernels().name;
};

// On every level that is here, and with other types of mask or numbers of threads that have the same reference.
void        expect_within_bounds(const AttentionCase& c, const std::vector<MaskType>& masks, const std::vector<int>& threads);
inline void expect_within_bounds(const AttentionCase& c) { expect_within_bounds(c, {c.mask}, {c.threads}); }

} // namespace tightkv::test
