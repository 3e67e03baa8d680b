// ISA level "scalar": the reference. Write path, then read path; decode and batched attention are the same code here.
#include <cmath>

#include "base/half.h"
#include "cpu/attend_common.h"

namespace tightkv {

namespace {

// ---- write path: codec/row.cpp is the reference itself

RowStatus encode(const Format& f, const Transform& t, const float* x, CodedRow& row) { return encode_row(f, t, x, row); }
void      encode_rows(const Format& f, int n, const Transform* const* t, const float* const* x, CodedRow* const* row, RowStatus* status) {
         for (int r = 0; r < n; r++) status[r] = encode_row(f, *t[r], x[r], *row[r]);
}
void decode(const Format& f, const Transform& t, const CodedRow& row, float* x) { decode_row(f, t, row, x); }
void forward(const Transform& t, float* x) { t.forward(x); }
void inverse(const Transform& t, float* y) { t.inverse(y); }
void query(const Transform& t, float* q) { t.query(q); }
void output(const Transform& t, float* o) { t.output(o); }

// ---- read path: key by key in f32, textbook order

void attend(const AttendArgs& a, const AttendState& s, float*) {
    const int dk = a.k.head_dim, dv = a.v.head_dim;
    float     key[kMaxHeadDim], value[kMaxHeadDim];
    for (int j = a.begin; j < a.end; j++) {
        bool have_rows = false;
        for (int r = 0; r < a.rows; r++) {
            const float bias = mask_value(a, r, j);
            if (bias == kNegInf) continue;
            if (!have_rows) {
                transformed_row(a.k, Operand::K, j, key);
                transformed_row(a.v, Operand::V, j, value);
                have_rows = true;
            }
            float dot = 0;
            for (int i = 0; i < dk; i++) dot += a.q[static_cast<size_t>(r) * dk + i] * key[i];
            float score = dot * a.scale;
            if (a.softcap != 0) score = a.softcap * std::tanh((score + (a.offset ? a.offset[r] : 0.0f)) / a.softcap);
            score += bias;
            float* o = s.o + static_cast<size_t>(r) * dv;
            if (score > s.m[r]) {
                const float shrink = s.m[r] == kNegInf ? 0.0f : std::exp(s.m[r] - score);
                s.l[r] *= shrink;
                for (int i = 0; i < dv; i++) o[i] *= shrink;
                s.m[r] = score;
            }
            // A NaN score stays NaN in its own row: the comparison above is false and p below carries it on.
            const float p = std::exp(score - s.m[r]);
            s.l[r] += p;
            for (int i = 0; i < dv; i++) o[i] += p * value[i];
        }
    }
}

} // namespace

const KernelTable& scalar_kernels() {
    static constexpr KernelTable table = {"scalar", encode, encode_rows, decode, forward, inverse, query, output, attend, attend};
    return table;
}

} // namespace tightkv
