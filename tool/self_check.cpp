#include "self_check.h"

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

void require_identical(const std::string& path, const Summary& reference, const Summary& again) {
    if (reference.n_tokens == 0 || again.n_tokens != reference.n_tokens)
        throw failure(fmt::format("refused to measure: on the {} path {} tokens were scored with one f16 cache and {} with a second one",
                                  path, reference.n_tokens, again.n_tokens));
    // Only equality passes: a NaN never does. The error of the mean: divergences of both signs could cancel in the mean itself.
    const bool same =
        again.kld == 0 && again.kld_se == 0 && again.kld_p999 == 0 && again.ppl == reference.ppl && again.top1 == 1 && reference.top1 == 1;
    if (!same)
        throw failure(
            fmt::format("refused to measure: on the {} path an f16 cache differs from a second f16 cache (KLD {:.3g}, PPL {} and {})", path,
                        again.kld, reference.ppl, again.ppl));
}

} // namespace tightkv::tool
