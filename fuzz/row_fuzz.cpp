// Any bytes as a canonical row and as a vector: bytes survive unpack and pack, decoding stays inside, and every ISA level agrees with
// the scalar reference bit for bit. Input: format, head_dim, then bytes.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/kernel_table.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {""};
const size_t             kFuzzWordCount = 0;

namespace {
bool same(const std::vector<float>& a, const std::vector<float>& b) { // payloads of NaN are nobody's promise
    for (size_t i = 0; i < a.size(); i++)
        if (std::memcmp(&a[i], &b[i], sizeof a[i]) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    return true;
}
} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace tightkv;
    if (size < 2) return 0;
    const Format& f = all_formats()[data[0] % all_formats().size()];
    const int     d = 32 * (1 + data[1] % 32);
    if (!f.transformed()) return 0;
    data += 2, size -= 2;

    std::vector<uint8_t> bytes(f.row_bytes(d)), again(bytes.size());
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = size ? data[i % size] : 0;
    CodedRow row;
    unpack_row(f, d, bytes.data(), row);
    pack_row(f, d, row, again.data());
    if (bytes != again) std::abort();
    std::vector<float> x(static_cast<size_t>(d)), y(x.size());
    decode_row(f, d, row, x.data());
    for (const KernelTable* k : available_kernels()) {
        k->decode(f, transform_for(d), row, y.data());
        if (!same(x, y)) std::abort();
    }

    for (size_t i = 0; i < sizeof(float) * x.size(); i++)
        reinterpret_cast<uint8_t*>(x.data())[i] = size ? data[i % size] : 0; // any bits as floats
    CodedRow        want;
    const RowStatus status = encode_row(f, d, x.data(), want);
    bool            finite = true;
    for (const float v : x) finite = finite && std::isfinite(v);
    if ((status == RowStatus::kRefused) == finite) std::abort();
    if ((want.scale & 0x7fff) > 0x7bff || want.scale >> 15) std::abort(); // never NaN, Inf or negative
    for (const KernelTable* k : available_kernels()) {
        CodedRow got;
        if (k->encode(f, transform_for(d), x.data(), got) != status || got.scale != want.scale ||
            std::memcmp(got.codes, want.codes, static_cast<size_t>(d)) != 0)
            std::abort();
    }
    return 0;
}
