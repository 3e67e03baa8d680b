// One published way to compress keys and values, as the lab measures it: rows go in, the rows that attention effectively sees come out.
// What would be stored is counted (Bits), not stored. Nothing here is fast, and nothing in src/ may include it.
//
// A method knows nothing of models: the harness (tool/lab_rows.h) cuts caches into sequences and heads.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tightkv::lab {

enum class Operand { key, value };

// Calibration data of one KV head; empty spans for methods that need none.
struct HeadSamples {
    std::span<const float> rows;    // [n][head_dim], its keys (after RoPE) or values
    std::span<const float> queries; // [m][head_dim], of all query heads that read it, after RoPE; for keys only
};
struct LayerSamples {
    Operand                  operand  = Operand::key;
    int                      head_dim = 0;
    std::vector<HeadSamples> heads; // one per KV head
};

// What one head stores for one operand, in bits, everything included: codes, scales, zeros, sketches, indices.
struct Bits {
    double row      = 0; // per row
    double sequence = 0; // once per sequence, beyond `row`: rows that stay in f16, what is computed from the sequence
    double model    = 0; // once per model: matrices, vectors and indices that were fitted
};
// Constants of a model serve all its sequences; they are shared out over this many rows.
inline constexpr int kModelRows = 32768;
double               bits_per_value(const Bits& bits, int head_dim, int rows_of_sequence);

// A method fitted to one operand of one head. Thread-safe.
class HeadMethod {
public:
    virtual ~HeadMethod() = default;
    // Rows before this one look as they did, whatever is written from row `first_new` of the sequence on. Never falls as first_new grows.
    virtual size_t first_changed(size_t first_new) const { return first_new; }
    // rows: rows `begin`… of a sequence up to its newest, as the model computed them, [n][head_dim]; begin is first_changed() of some row.
    // seen: the same rows as attention reads them now.
    virtual void roundtrip(size_t begin, std::span<const float> rows, std::span<float> seen) const = 0;
};

class Method {
public:
    virtual ~Method() = default;
    virtual bool                        needs_samples() const { return false; }
    virtual std::string                 refusal(int head_dim) const; // why it cannot serve this head_dim, or ""
    virtual Bits                        bits(Operand operand, int head_dim) const         = 0;
    virtual std::unique_ptr<HeadMethod> fit(const LayerSamples& layer, size_t head) const = 0;
};

std::vector<std::string> method_names();                     // in the order of docs/lab.md
std::unique_ptr<Method>  make_method(std::string_view name); // null where there is none of this name

} // namespace tightkv::lab
