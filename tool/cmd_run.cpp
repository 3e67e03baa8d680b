// tightkv run: a program of someone else, with our cache in it.
#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "cache/cache_spec.h"
#include "cache/profile.h"
#include "cache_choice.h"
#include "commands.h"
#include "errors.h"
#include "install_paths.h"

namespace tightkv::tool {

namespace {

std::string required(const std::string& file, const char* what) {
    char* full = ::realpath(file.c_str(), nullptr); // the program may change its folder
    if (!full) throw failure(fmt::format("{} not found: {} ({})", what, file, std::strerror(errno)));
    const std::string path(full);
    std::free(full);
    return path;
}

// The program would run stock, and not every one says why.
void require_backend(const std::string& file) {
    void* library = ::dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (!library) throw failure(fmt::format("adapter cannot be loaded: {}", ::dlerror()));
    const bool good = ::dlsym(library, "ggml_backend_init") != nullptr;
    ::dlclose(library);
    if (!good) throw failure(fmt::format("{} is no adapter: it has no function ggml_backend_init", file));
}

std::string beside(const std::string& file, const char* name) {
    const size_t slash = file.rfind('/');
    return (slash == std::string::npos ? std::string("./") : file.substr(0, slash + 1)) + name;
}

} // namespace

int run_run(const RunOptions& o) {
    CacheSpec spec;
    if (const Status s = parse_cache_spec(o.cache, spec); !s.ok()) {
        throw usage_error(s.message() + (is_stock_type(o.cache)
                                             ? fmt::format("; llama.cpp's own types are the program's: -ctk {0} -ctv {0}", o.cache)
                                             : ""));
    }
    if (Profile p; !spec.profile.empty())
        if (const Status s = Profile::load(spec.profile, p); !s.ok()) throw failure(s.message());
    if (o.command.empty())
        throw usage_error("no program: write it after '--', for example: tightkv run --cache turbo4 -- llama-cli -m MODEL");
    const std::string adapter = required(o.adapter.empty() ? adapter_file() : o.adapter, "adapter");
    const std::string preload = required(o.adapter.empty() ? preload_file() : beside(adapter, "libtightkv-preload.so"), "preload library");
    require_backend(adapter);
    // The dynamic loader would take the parts for libraries, complain and start the program without us.
    if (preload.find_first_of(": \t\n") != std::string::npos)
        throw failure(fmt::format("the path of the preload library holds a space or a colon, which LD_PRELOAD cannot name: {}", preload));

    const char* before = std::getenv("LD_PRELOAD");
    setenv("LD_PRELOAD", ((before && *before ? std::string(before) + ":" : std::string()) + preload).c_str(), 1); // others keep their place
    setenv("GGML_BACKEND_PATH", adapter.c_str(), 1);
    setenv("TIGHTKV", o.cache.c_str(), 1);
    if (o.stats) setenv("TIGHTKV_STATS", "1", 1);

    std::vector<char*> argv;
    for (const std::string& a : o.command) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    const int error = errno;
    throw Failure(fmt::format("cannot run {}: {}", o.command[0], std::strerror(error)), error == ENOENT ? 127 : 126); // as shells do
}

} // namespace tightkv::tool
