// Measuring the mean, and coding again what was coded without it.
#include "cache/self_calibration.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace tightkv {

void SelfCalibration::observe(const TileStore& store, int stream, int64_t cell, int32_t position, const float* row) {
    const size_t n = static_cast<size_t>(store.shape().n_kv_heads) * static_cast<size_t>(store.shape().head_dim);
    kept_.keep(stream, cell, row, n);
    if (left_out(position)) return;
    if (!std::all_of(row, row + n, [](float x) { return std::isfinite(x); })) return;
    sum_.resize(n);
    for (size_t i = 0; i < n; i++) sum_[i] += static_cast<double>(row[i]);
    counted_++;
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
        std::vector<float> mean(d);
        for (size_t i = 0; i < d; i++) mean[i] = static_cast<float>(sum_[at + i] / static_cast<double>(counted_));
        transforms.push_back(std::make_shared<const Transform>(store.transform(static_cast<int>(at / d)).with_mean(std::move(mean))));
    }
    kept_.recode(store, std::move(transforms)); // rows of this batch, too: they are about to be written once more
    if (most >= wanted_) *this = SelfCalibration(0);
    else next_ = std::min(2 * most, wanted_);
    return true;
}

void SelfCalibration::clear() { kept_.clear(); }

} // namespace tightkv
