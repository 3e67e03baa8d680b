#include "text.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include <sys/stat.h>

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

std::string read_text(const std::string& path) {
    struct stat s = {};
    if (::stat(path.c_str(), &s) != 0) throw failure(fmt::format("cannot read text {}: {}", path, std::strerror(errno)));
    if (S_ISDIR(s.st_mode)) throw failure(fmt::format("cannot read text {}: it is a folder", path));
    std::ifstream in(path, std::ios::binary);
    if (!in) throw failure(fmt::format("cannot read text {}: {}", path, std::strerror(errno)));
    std::string text((std::istreambuf_iterator<char>(in)), {});
    if (in.bad()) throw failure(fmt::format("cannot read text {}", path));
    if (text.empty()) throw failure(fmt::format("text {} is empty", path));
    return text;
}

std::vector<std::string> split_list(std::string_view list) {
    std::vector<std::string> items;
    for (;;) {
        const size_t     comma = list.find(',');
        std::string_view item  = list.substr(0, comma);
        while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
        while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
        items.emplace_back(item);
        if (comma == std::string_view::npos) return items;
        list.remove_prefix(comma + 1);
    }
}

std::vector<std::vector<Token>> cut_chunks(const std::vector<Token>& tokens, int ctx, int chunks, Token bos, const std::string& what) {
    const size_t n = static_cast<size_t>(ctx), need = n * static_cast<size_t>(chunks);
    if (tokens.size() < need)
        throw failure(fmt::format("text {} is too short: {} tokens, and {} chunk{} of {} need{} {}", what, tokens.size(), chunks,
                                  chunks == 1 ? "" : "s", ctx, chunks == 1 ? "s" : "", need));
    std::vector<std::vector<Token>> cut;
    for (size_t c = 0; c < static_cast<size_t>(chunks); c++) {
        const auto from = tokens.begin() + static_cast<ptrdiff_t>(c * n);
        cut.emplace_back(from, from + static_cast<ptrdiff_t>(n));
        if (bos >= 0) cut.back().front() = bos;
    }
    return cut;
}

} // namespace tightkv::tool
