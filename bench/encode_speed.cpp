#include "encode_speed.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "attention_data.h"

namespace tightkv::bench {

namespace {

template <class Pass> double seconds_per_row(double least, Pass pass) {
    pass(); // warm
    const auto start   = std::chrono::steady_clock::now();
    double     seconds = 0;
    int64_t    rows    = 0;
    do {
        pass(), rows += EncodeSpeed::kRows;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    } while (seconds < least);
    return seconds / static_cast<double>(rows);
}

// A mean and an invertible matrix: the Hadamard transform with its coordinates stretched, and what undoes it.
std::shared_ptr<const Transform> dense_transform(int d) {
    const Transform&   hadamard = transform_for(d);
    const auto         n        = static_cast<size_t>(d);
    std::vector<float> mean(n), matrix(n * n), inverse(n * n), unit(n);
    for (size_t j = 0; j < n; j++) {
        const float stretch = std::exp2(static_cast<float>(j % 5) / 4 - 0.5f);
        mean[j]             = static_cast<float>(j % 7) - 3;
        std::fill(unit.begin(), unit.end(), 0.0f);
        unit[j] = 1;
        hadamard.forward(unit.data());
        for (size_t i = 0; i < n; i++) matrix[i * n + j] = unit[i] * stretch, inverse[j * n + i] = unit[i] / stretch;
    }
    return std::make_shared<const Transform>(d, std::move(mean), matrix, inverse);
}

} // namespace

EncodeSpeed::EncodeSpeed(const Format& f, int head_dim, bool dense)
    : format_(f), head_dim_(head_dim), transform_(dense ? dense_transform(head_dim) : std::make_shared<const Transform>(head_dim)),
      x_(static_cast<size_t>(kRows) * head_dim) {
    for (int r = 0; r < kRows; r++) {
        float* const x = x_.data() + static_cast<size_t>(r) * head_dim;
        cached_row(Operand::K, 0, r, {x, static_cast<size_t>(head_dim)});
        for (int i = 0; i < head_dim; i++) x[i] *= std::exp2(static_cast<float>(r % 9 - 4)); // rows of different sizes
    }
    for (const Operand op : {Operand::K, Operand::V})
        if (const Status s = TileStore::create(f, op, {1, 1, head_dim, kRows}, stores_[op == Operand::V]); !s.ok())
            throw std::runtime_error(s.message());
    for (auto& store : stores_) store->set_transforms({transform_});
}

void EncodeSpeed::encode_group(int r, RowStatus* status) {
    const Transform* t[kEncodeRows];
    const float*     x[kEncodeRows];
    CodedRow*        row[kEncodeRows];
    for (int i = 0; i < kEncodeRows; i++) t[i] = transform_.get(), x[i] = row_at(r + i), row[i] = &coded_[i];
    kernels().encode_rows(format_, kEncodeRows, t, x, row, status);
}

std::string EncodeSpeed::complaint() {
    RowStatus status[kEncodeRows];
    for (int r = 0; r < kRows; r++) {
        if (r % kEncodeRows == 0) encode_group(r, status);
        const CodedRow& row = coded_[r % kEncodeRows];
        CodedRow        scalar{};
        if (status[r % kEncodeRows] != encode_row(format_, *transform_, row_at(r), scalar) || row.scale != scalar.scale ||
            std::memcmp(row.codes, scalar.codes, static_cast<size_t>(head_dim_)) != 0)
            return std::string(kernels().name) + " encodes row " + std::to_string(r) + " of " + format_.name + ", head_dim " +
                   std::to_string(head_dim_) + ", otherwise than the scalar reference";
    }
    return {};
}

void EncodeSpeed::encode_pass() {
    RowStatus status[kEncodeRows];
    for (int r = 0; r < kRows; r += kEncodeRows) encode_group(r, status);
}

double EncodeSpeed::encode(double least_seconds) {
    return seconds_per_row(least_seconds, [&] { encode_pass(); });
}

double EncodeSpeed::write(Operand op, double least_seconds) {
    TileStore& store = *stores_[op == Operand::V];
    return seconds_per_row(least_seconds, [&] {
        for (int r = 0; r < kRows; r += kEncodeRows) {
            StoreRow  rows[kEncodeRows];
            RowStatus status[kEncodeRows];
            for (int i = 0; i < kEncodeRows; i++) rows[i] = {0, 0, r + i, row_at(r + i)};
            store.write(rows, status);
        }
    });
}

} // namespace tightkv::bench
