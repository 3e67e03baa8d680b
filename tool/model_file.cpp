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

// One line that identifies a file and its content: another file of the same name, or a changed or truncated one, has another.
std::string stamp(const std::string& path) {
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
    if (ec) throw failure(fmt::format("cannot make the folder {}: {} (--no-expand works without)", folder.string(), ec.message()));
    const std::string to     = (folder / fs::path(path).stem()).string() + ".F32.gguf";
    const std::string from   = to + ".from"; // the stamps of the model and of its expansion
    const std::string origin = stamp(path);
    const auto        made   = [&] { return ::access(to.c_str(), R_OK) == 0 && content(from) == origin + stamp(to); };
    if (made()) return to;
    const Lock lock(to + ".lock");
    if (made()) return to;
    say(fmt::format("expanding {} to F32, once: {}", path, to));
    const std::string part = to + ".part";
    ::unlink(from.c_str());
    expand_to_f32(path, part, threads);
    if (::rename(part.c_str(), to.c_str()) != 0) throw failure(fmt::format("cannot write {}: {}", to, std::strerror(errno)));
    std::ofstream(from, std::ios::binary) << origin << stamp(to);
    return to;
}

} // namespace tightkv::tool
