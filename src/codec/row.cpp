// Scalar reference of the encoder, and the canonical bytes.
#include "codec/row.h"

#include "codec/row_encode.h"

namespace tightkv {

namespace {

struct ScalarOps {
    static void hadamard(float* x, int n, const float* before, const float* after) {
        for (int i = 0; i < n; i++) x[i] *= before[i];
        fwht(x, n);
        for (int i = 0; i < n; i++) x[i] *= after[i];
    }
    static float sum_squares(const float* x, int d) {
        float lane[16] = {};
        for (int i = 0; i < d; i++) lane[i % 16] += x[i] * x[i];
        for (int n = 8; n >= 1; n /= 2)
            for (int i = 0; i < n; i++) lane[i] += lane[i + n];
        return lane[0];
    }
    static int code_levels(const float* y, int d, float to_fixed, const Codebook& book, uint8_t* codes) {
        int norm2 = 0;
        for (int i = 0; i < d; i++) {
            float v = std::nearbyint(y[i] * to_fixed); // round to nearest even, the default mode
            v       = v > 32767.0f ? 32767.0f : v < -32768.0f ? -32768.0f : v;
            int c   = 0;
            for (int k = 0; k + 1 < book.n; k++) c += static_cast<int>(v) > book.threshold[k];
            codes[i] = static_cast<uint8_t>(c);
            norm2 += book.level[c] * book.level[c];
        }
        return norm2;
    }
    static void levels_of(const uint8_t* codes, int d, const Codebook& book, float w, float* y) {
        for (int i = 0; i < d; i++) y[i] = w * static_cast<float>(book.level[codes[i]]);
    }
    static int code_trellis(const float* y, int d, float to_fixed, int bits, const uint8_t* guess, uint8_t* codes) {
        return scalar_code_trellis(y, d, to_fixed, bits, guess, codes);
    }
    static void trellis_levels_of(const uint8_t* codes, int d, int bits, float w, float* y) {
        scalar_trellis_levels_of(codes, d, bits, w, y);
    }
    static void round_to_half(float* x, int d) {
        for (int i = 0; i < d; i++) x[i] = half_to_float(float_to_half(x[i]));
    }
};

} // namespace

RowStatus encode_row(const Format& f, const Transform& t, const float* x, CodedRow& row) { return encode<ScalarOps>(f, t, x, row); }
void      decode_row(const Format& f, const Transform& t, const CodedRow& row, float* x) { decode<ScalarOps>(f, t, row, x); }

RowStatus encode_row(const Format& f, int head_dim, const float* x, CodedRow& row) {
    return encode_row(f, transform_for(head_dim), x, row);
}
void decode_row(const Format& f, int head_dim, const CodedRow& row, float* x) { decode_row(f, transform_for(head_dim), row, x); }

void pack_row(const Format& f, int head_dim, const CodedRow& row, uint8_t* bytes) {
    bytes[0]      = static_cast<uint8_t>(row.scale & 0xff);
    bytes[1]      = static_cast<uint8_t>(row.scale >> 8);
    uint32_t acc  = 0;
    int      have = 0;
    for (int i = 0, at = 2; i < head_dim; i++) {
        acc |= static_cast<uint32_t>(row.codes[i]) << have;
        for (have += f.bits; have >= 8; have -= 8, acc >>= 8) bytes[at++] = static_cast<uint8_t>(acc);
    }
}

void unpack_row(const Format& f, int head_dim, const uint8_t* bytes, CodedRow& row) {
    row.scale           = static_cast<uint16_t>(bytes[0] | bytes[1] << 8);
    const uint32_t mask = (1u << f.bits) - 1;
    uint32_t       acc  = 0;
    int            have = 0;
    for (int i = 0, at = 2; i < head_dim; i++) {
        for (; have < f.bits; have += 8) acc |= static_cast<uint32_t>(bytes[at++]) << have;
        row.codes[i] = static_cast<uint8_t>(acc & mask);
        acc >>= f.bits, have -= f.bits;
    }
}

} // namespace tightkv
