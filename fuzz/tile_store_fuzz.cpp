// A script of cell writes, canonical writes and clears on a small store, against a plain array of canonical rows.
// Input: format, operand, then commands of three bytes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cache/tile_store.h"

extern const char* const kFuzzWords[];
extern const size_t      kFuzzWordCount;
const char* const        kFuzzWords[]   = {""};
const size_t             kFuzzWordCount = 0;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace tightkv;
    constexpr int kHeads = 2, kDim = 96, kCells = 70;
    if (size < 2) return 0;
    const Format&              f = all_formats()[data[0] % all_formats().size()];
    std::unique_ptr<TileStore> store;
    if (!TileStore::create(f, data[1] % 2 ? Operand::V : Operand::K, {1, kHeads, kDim, kCells}, store).ok()) std::abort();
    const size_t                      n = f.row_bytes(kDim);
    std::vector<std::vector<uint8_t>> want(kHeads * kCells, std::vector<uint8_t>(n, 0));
    std::vector<uint8_t>              bytes(n);
    std::vector<float>                x(kDim);
    for (size_t at = 2; at + 3 <= size; at += 3) {
        const int             head = data[at] % kHeads, cell = data[at + 1] % kCells;
        std::vector<uint8_t>& w = want[static_cast<size_t>(head * kCells + cell)];
        for (size_t i = 0; i < n; i++) bytes[i] = static_cast<uint8_t>(data[at + 2] * (i + 1) + i);
        for (int i = 0; i < kDim; i++) x[i] = static_cast<float>(static_cast<int8_t>(data[at + 2] * (i + 3)));
        switch (data[at] / 2 % 8) {
        case 0:
            store->clear();
            for (auto& row : want) row.assign(n, 0);
            break;
        case 1:
        case 2:
        case 3:
            for (size_t i = 1; i < n; i += 2) // finite scale and f16 values, as an encoder writes them; others become the zero row
                if (i == 1 || !f.transformed()) bytes[i] &= 0x7b;
            if (f.kind == FormatKind::Uniform) std::replace(bytes.begin() + 2, bytes.end(), uint8_t{0x80}, uint8_t{0x81}); // no -128
            store->write_canonical(0, head, cell, bytes.data());
            w = bytes;
            break;
        default:
            if (store->write(0, head, cell, x.data()) != RowStatus::kOk) std::abort();
            store->read_canonical(0, head, cell, w.data());
            store->read(0, head, cell, x.data());
            if (f.transformed()) break;
            for (int i = 0; i < kDim; i++) // f16 rows hold small integers exactly
                if (x[i] != static_cast<float>(static_cast<int8_t>(data[at + 2] * (i + 3)))) std::abort();
        }
    }
    for (int h = 0; h < kHeads; h++)
        for (int c = 0; c < kCells; c++) {
            store->read_canonical(0, h, c, bytes.data());
            if (bytes != want[static_cast<size_t>(h * kCells + c)]) std::abort();
        }
    return 0;
}
