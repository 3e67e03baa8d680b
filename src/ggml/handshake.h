// Is this a host whose private structs we know? Asked before anything is touched.
#pragma once
#include <string>

#include "ggml-backend.h"

namespace tightkv {

struct Host {
    ggml_backend_dev_t cpu = nullptr;
    int                api = 0; // GGML_BACKEND_API_VERSION of the host: 2 or 3
    std::string        version;
    bool               tested = false; // version is one the tests run against
};

// Fills `host` and returns an empty string, or says why the host is not one we can work in.
std::string handshake(Host& host);

} // namespace tightkv
