// Measuring the mean, and coding again what was coded without it.
#include "cache/self_calibration.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <memory>
#include <span>

namespace tightkv {

namespace {

// The mean of rows at positions below `seen`, of one head, made that of longer texts. How long they will be is not known: lengths count
// alike by octaves, up to n_cells.
void extend(std::span<double> mean, const Rope& rope, int64_t seen, int64_t n_cells) {
    for (const RopePair& p : rope_pairs(rope, static_cast<int64_t>(mean.size()))) {
        double &             x = mean[static_cast<size_t>(p.x)], &y = mean[static_cast<size_t>(p.y)];
        std::complex<double> turn    = 0;
        int                  lengths = 0;
        for (int64_t length = seen; length < n_cells; lengths++) {
            length = std::min(2 * length, n_cells);
            turn += mean_turn(p.f, length - seen + 1);
        }
        const std::complex<double> z = lengths ? std::complex(x, y) * turn / static_cast<double>(lengths) : std::complex(x, y);
        x = z.real(), y = z.imag();
    }
}

} // namespace

void SelfCalibration::observe(const TileStore& store, int stream, int64_t cell, int32_t position, const float* row) {
    const size_t n = static_cast<size_t>(store.shape().n_kv_heads) * static_cast<size_t>(store.shape().head_dim);
    kept_.keep(stream, cell, row, n);
    if (left_out(position)) return;
    if (!std::all_of(row, row + n, [](float x) { return std::isfinite(x); })) return;
    sum_.resize(n);
    for (size_t i = 0; i < n; i++) sum_[i] += static_cast<double>(row[i]);
    counted_++;
    if (position >= 0) first_ = std::min<int64_t>(first_, position);
    seen_ = std::max<int64_t>(seen_, position + 1);
    if (counted_in_.size() <= static_cast<size_t>(stream)) counted_in_.resize(static_cast<size_t>(stream) + 1);
    counted_in_[static_cast<size_t>(stream)]++;
}

void SelfCalibration::written(int stream, int64_t cell) { kept_.written(stream, cell); }

bool SelfCalibration::update(TileStore& store) {
    const int64_t most = counted_in_.empty() ? 0 : *std::max_element(counted_in_.begin(), counted_in_.end());
    if (most < next_ || done()) return false;
    const size_t                                  d = static_cast<size_t>(store.shape().head_dim), n = sum_.size();
    std::vector<std::shared_ptr<const Transform>> transforms;
    for (size_t at = 0; at < n; at += d) {
        std::vector<double> mean(d);
        for (size_t i = 0; i < d; i++) mean[i] = sum_[at + i] / static_cast<double>(counted_);
        if (first_ <= kLeftOut) extend(mean, rope_, seen_, store.shape().n_cells); // else behind restored rows, of positions not seen here
        transforms.push_back(
            std::make_shared<const Transform>(store.transform(static_cast<int>(at / d)).with_mean({mean.begin(), mean.end()})));
    }
    kept_.recode(store, std::move(transforms)); // rows of this batch, too: they are about to be written once more
    if (most >= wanted_) *this = SelfCalibration(0);
    else next_ = std::min(2 * most, wanted_);
    return true;
}

void SelfCalibration::clear() { kept_.clear(); }

} // namespace tightkv
