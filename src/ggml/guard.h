// The boundary to the host, which is C: what is thrown inside ends here.
#pragma once
#include <cstdio>
#include <exception>

namespace tightkv {

// f(), or `otherwise` when it throws. The message goes out without allocating: memory is what has most likely run out.
template <class R, class F> R guarded(R otherwise, const F& f) {
    try {
        return f();
    } catch (const std::exception& e) {
        std::fprintf(stderr, "tightkv: %s\n", e.what());
    }
    return otherwise;
}
template <class F> void guarded(const F& f) {
    guarded(0, [&] { return f(), 0; });
}

} // namespace tightkv
