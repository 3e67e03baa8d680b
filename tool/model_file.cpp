#include "model_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <fmt/format.h>

#include "engine_llama.h"
#include "errors.h"
#include "install_paths.h"

namespace tightkv::tool {

namespace fs = std::filesystem;

namespace {

constexpr const char* kDefaultModel = "SmolLM2-135M-Instruct.Q4_1.gguf";

// What an expansion was made from; another file of the same name has another line.
std::string origin_of(const std::string& path) {
    struct stat s = {};
    if (::stat(path.c_str(), &s) != 0) throw failure(fmt::format("cannot read model {}: {}", path, std::strerror(errno)));
    return fmt::format("{} {} {}.{:09}\n", fs::canonical(path).string(), s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
}

std::string content(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

// Held while a file is made, so that two programs do not make it at once; the kernel frees it with the process.
class Lock {
public:
    explicit Lock(const std::string& path) : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
        if (fd_ < 0) throw failure(fmt::format("cannot write {}: {} (--no-expand works without)", path, std::strerror(errno)));
        while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
        }
    }
    ~Lock() { ::close(fd_); }
    Lock(const Lock&)            = delete;
    Lock& operator=(const Lock&) = delete;

private:
    int fd_;
};

} // namespace

std::string model_path(const std::string& name) {
    if (name != "default") {
        if (::access(name.c_str(), R_OK) != 0) throw failure(fmt::format("cannot read model {}: {}", name, std::strerror(errno)));
        std::error_code ec;
        if (fs::is_directory(name, ec)) throw failure(fmt::format("cannot read model {}: it is a folder", name));
        return name;
    }
    const char*       chosen = std::getenv("TIGHTKV_DEFAULT_MODEL");
    const std::string path   = chosen && *chosen ? std::string(chosen) : cache_folder() + "/models/" + kDefaultModel;
    if (::access(path.c_str(), R_OK) != 0)
        throw failure(fmt::format("the default model is not there: {} ({}); './run model' fetches it", path, std::strerror(errno)));
    return path;
}

std::string unquantized_model(const std::string& path, int threads, void (*say)(const std::string&)) {
    if (!is_quantized(path)) return path;
    const fs::path  folder = fs::path(cache_folder()) / "models";
    std::error_code ec;
    fs::create_directories(folder, ec);
    const fs::path    stem = fs::path(path).stem();
    const std::string to = (folder / stem).string() + ".F32.gguf", from = to + ".from", origin = origin_of(path);
    const auto        made = [&] { return ::access(to.c_str(), R_OK) == 0 && content(from) == origin; };
    if (made()) return to;
    const Lock lock(to + ".lock");
    if (made()) return to;
    say(fmt::format("expanding {} to F32, once: {}", path, to));
    const std::string part = to + ".part";
    ::unlink(from.c_str());
    expand_to_f32(path, part, threads);
    if (::rename(part.c_str(), to.c_str()) != 0) throw failure(fmt::format("cannot write {}: {}", to, std::strerror(errno)));
    std::ofstream(from, std::ios::binary) << origin;
    return to;
}

} // namespace tightkv::tool
