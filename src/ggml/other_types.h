// Keys and values that the host keeps in a type we do not compress (-ctk q8_0): said in one line per cache, when it is allocated.
#pragma once
#include "ggml.h"

namespace tightkv {

class OtherTypes {
public:
    void look_at(const ggml_tensor* t); // any tensor of the allocation
    void tell() const;                  // nothing where there were none

private:
    static constexpr ggml_type kNone = GGML_TYPE_COUNT;
    ggml_type                  k_ = kNone, v_ = kNone;
};

} // namespace tightkv
