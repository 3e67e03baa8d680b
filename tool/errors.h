// How a command fails: one exception that carries the exit code, caught once in main.
#pragma once
#include <stdexcept>
#include <string>

namespace tightkv::tool {

inline constexpr int kExitFailure = 1, kExitUsage = 2, kExitInterrupted = 130;

struct Failure : std::runtime_error {
    Failure(const std::string& message, int code) : std::runtime_error(message), exit_code(code) {}
    int exit_code;
};

inline Failure usage_error(const std::string& message) { return {message, kExitUsage}; }
inline Failure failure(const std::string& message) { return {message, kExitFailure}; }

} // namespace tightkv::tool
