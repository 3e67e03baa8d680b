#include "install_paths.h"

#include <cstdlib>
#include <filesystem>

#include <unistd.h>

#include "errors.h"

namespace tightkv::tool {

namespace fs = std::filesystem;

namespace {

fs::path bin_folder() {
    std::error_code ec;
    return fs::read_symlink("/proc/self/exe", ec).parent_path();
}

// The first that exists; the first at all where none does, so that a message can name it.
std::string first_of(std::initializer_list<fs::path> places) {
    std::error_code ec;
    for (const fs::path& p : places)
        if (fs::exists(p, ec)) return p.lexically_normal().string();
    return places.begin()->lexically_normal().string();
}

std::string library(const char* name) {
    const fs::path prefix = bin_folder().parent_path();
    return first_of({prefix / "lib" / name, prefix / TIGHTKV_LIB_DIR / name, bin_folder() / name});
}

std::string data(const char* name) {
    return first_of({bin_folder().parent_path() / "share/tightkv" / name, fs::path(TIGHTKV_DATA_DIR) / name});
}

} // namespace

std::string adapter_file() { return library("libggml-tightkv.so"); }
std::string preload_file() { return library("libtightkv-preload.so"); }

std::string demo_text() { return data("demo.txt"); }
std::string calibration_text() { return data("calibration.txt"); }

std::string cache_folder() {
    if (const char* c = std::getenv("TIGHTKV_CACHE"); c && *c) return c;
    if (const char* h = std::getenv("HOME"); h && *h) return std::string(h) + "/.cache/tightkv";
    throw failure("no cache folder: set HOME or TIGHTKV_CACHE");
}

} // namespace tightkv::tool
