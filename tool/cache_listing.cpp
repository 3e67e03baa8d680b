#include "cache_listing.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "cache/profile.h"

namespace tightkv::tool {

namespace fs = std::filesystem;

namespace {

// Of a file, or of all files below a folder. What goes away meanwhile, or may not be read, counts nothing.
uint64_t bytes_of(const fs::path& path) {
    std::error_code ec;
    if (!fs::is_directory(fs::symlink_status(path, ec))) {
        const bool     regular = fs::is_regular_file(fs::symlink_status(path, ec));
        const uint64_t n       = regular ? fs::file_size(path, ec) : 0;
        return ec ? 0 : n;
    }
    uint64_t sum = 0;
    for (auto at = fs::recursive_directory_iterator(path, fs::directory_options::skip_permission_denied, ec);
         !ec && at != fs::recursive_directory_iterator(); at.increment(ec))
        if (!fs::is_directory(at->symlink_status(ec))) sum += bytes_of(at->path());
    return sum;
}

std::string about_profile(const fs::path& path) {
    Profile p;
    if (const Status s = Profile::load(path.string(), p); !s.ok()) return "no profile that can be used: " + s.message();
    return "a profile (demo makes its own again) of architecture " + p.architecture + ", fingerprint " + p.fingerprint() + ", made from " +
           p.made_from;
}

std::string meaning(const fs::path& cache, const fs::path& name) {
    const std::string folder = name.begin()->string(), file = name.filename().string();
    if (folder == "models" && file.ends_with(".F32.gguf")) return "a model expanded to F32 (eval and demo make it again)";
    if (folder == "models" && file.ends_with(".F32.gguf.from"))
        return "what that expansion was made of; without this note it is made again";
    if (folder == "models" && file.ends_with(".F32.gguf.part")) return "an expansion that is being made, or was interrupted";
    if (folder == "models" && file.ends_with(".gguf")) return "a model";
    if (folder == "models" && file.ends_with(".tkv")) return about_profile(cache / name);
    if (folder == "hosts") return "llama.cpp, sources and build; an installed tightkv may use its libraries";
    if (folder == "dl") return "downloaded archives";
    if (folder == "ccache") return "compiled objects, to build again in seconds";
    if (folder == "venv") return "Python of the tests";
    return "";
}

bool is_listed_inside(const fs::path& name) { return name == "models" || name == "hosts"; }

} // namespace

std::vector<CacheEntry> list_cache(const std::string& folder) {
    std::vector<CacheEntry> entries;
    const auto              add = [&](const fs::path& name) {
        const uint64_t bytes = bytes_of(fs::path(folder) / name);
        if (bytes > 0) entries.push_back({name.string(), bytes, meaning(folder, name)}); // no locks
    };
    const auto names_in = [&](const fs::path& inner) {
        std::vector<fs::path> names;
        std::error_code       ec;
        for (auto at = fs::directory_iterator(fs::path(folder) / inner, ec); !ec && at != fs::directory_iterator(); at.increment(ec))
            names.push_back(inner / at->path().filename());
        return names;
    };
    for (const fs::path& name : names_in("")) {
        if (!is_listed_inside(name)) add(name);
        else
            for (const fs::path& inside : names_in(name)) add(inside);
    }
    std::sort(entries.begin(), entries.end(),
              [](const CacheEntry& a, const CacheEntry& b) { return a.bytes != b.bytes ? a.bytes > b.bytes : a.name < b.name; });
    return entries;
}

} // namespace tightkv::tool
