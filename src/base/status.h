// Result of a call that can fail: a code and a sentence. The library never throws and never aborts its caller.
#pragma once
#include <string>
#include <utility>

namespace tightkv {

enum class StatusCode { kOk = 0, kInvalidArgument, kUnsupported, kOutOfMemory, kCorruptData, kInternal };

class [[nodiscard]] Status {
public:
    Status() = default;
    Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

    bool               ok() const { return code_ == StatusCode::kOk; }
    StatusCode         code() const { return code_; }
    const std::string& message() const { return message_; }

private:
    StatusCode  code_ = StatusCode::kOk;
    std::string message_;
};

inline Status invalid_argument(std::string m) { return {StatusCode::kInvalidArgument, std::move(m)}; }
inline Status unsupported(std::string m) { return {StatusCode::kUnsupported, std::move(m)}; }
inline Status corrupt_data(std::string m) { return {StatusCode::kCorruptData, std::move(m)}; }

} // namespace tightkv
