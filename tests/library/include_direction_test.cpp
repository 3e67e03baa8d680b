// Includes go one way: base <- codec <- cpu <- cache <- {capi, ggml}; foreign headers stay in the one place that owns them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>

namespace fs = std::filesystem;

namespace {

const fs::path kRoot = TIGHTKV_SOURCE_DIR;

// What a folder of src/ may include besides itself.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"base", {}},
    {"codec", {"base"}},
    {"cpu", {"base", "codec"}},
    {"cache", {"base", "codec", "cpu"}},
    {"capi", {"base", "codec", "cpu", "cache", "tightkv"}},
    {"ggml", {"base", "codec", "cpu", "cache", "tightkv"}},
};

struct Include {
    fs::path    file; // relative to the root
    int         line;
    std::string target;
    bool        quoted;
};

std::vector<Include> includes_of(const fs::path& file, std::istream& in) {
    static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
    std::vector<Include>    out;
    std::string             line;
    for (int n = 1; std::getline(in, line); n++) {
        std::smatch m;
        if (std::regex_search(line, m, pattern)) out.push_back({file, n, m[2], m[1] == "\""});
    }
    return out;
}

std::vector<Include> all_includes(const char* folder) {
    std::vector<Include> out;
    if (!fs::exists(kRoot / folder)) return out;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
        const std::string ext = entry.path().extension().string();
        if (ext != ".h" && ext != ".hpp" && ext != ".cpp" && ext != ".c" && ext != ".def" && ext != ".cu" && ext != ".cuh") continue;
        std::ifstream in(entry.path());
        for (Include& i : includes_of(fs::relative(entry.path(), kRoot), in)) out.push_back(std::move(i));
    }
    return out;
}

// Empty when allowed.
std::string complaint(const Include& i) {
    const std::string where = i.file.string() + ":" + std::to_string(i.line) + " includes " + i.target;
    const auto        part  = i.file.begin();
    const std::string top = part->string(), folder = std::next(part)->string(), name = i.file.filename().string();
    const auto        starts = [&](const char* s) { return i.target.rfind(s, 0) == 0; };
    if (starts("ggml") && !(top == "src" && folder == "ggml") && !(top == "tool" && name.rfind("engine_llama", 0) == 0))
        return where + ": ggml belongs to src/ggml";
    if (i.target.rfind("llama", 0) == 0 && !(top == "tool" && name.rfind("engine_llama", 0) == 0))
        return where + ": llama.h belongs to tool/engine_llama";
    if (starts("CLI/") && !(top == "tool" && name == "main.cpp")) return where + ": the command-line library belongs to tool/main.cpp";
    if (starts("sqlite3") && !(top == "tool" && name.rfind("store", 0) == 0)) return where + ": SQLite belongs to tool/store";
    if (top != "src" || !i.quoted) return {};
    const size_t slash = i.target.find('/');
    if (slash == std::string::npos) return {}; // beside the file itself
    const std::string target = i.target.substr(0, slash);
    const auto        rule   = kMayInclude.find(folder);
    if (rule == kMayInclude.end()) return where + ": no rule for src/" + folder;
    if (target != folder && !rule->second.contains(target)) return where + ": src/" + folder + " may not see " + target;
    return {};
}

std::string complaint(const char* file, const char* line) {
    std::istringstream in(line);
    const auto         i = includes_of(file, in);
    return i.size() == 1 ? complaint(i[0]) : "not one include";
}

} // namespace

TEST(IncludeDirection, HoldsInTheTree) {
    int seen = 0;
    for (const char* folder : {"src", "tool", "include", "lab"})
        for (const Include& i : all_includes(folder)) {
            seen++;
            EXPECT_EQ(complaint(i), "");
        }
    EXPECT_GT(seen, 60) << "the scan must find the sources";
}

TEST(IncludeDirection, PublicHeadersStandAlone) { // include/ is installed without src/
    for (const Include& i : all_includes("include"))
        if (i.quoted) {
            EXPECT_TRUE(i.target.rfind("tightkv/", 0) == 0 || i.target.find('/') == std::string::npos)
                << i.file << " includes " << i.target;
        }
}

TEST(IncludeDirection, RejectsWrongIncludes) { // the rules have power
    EXPECT_NE(complaint("src/base/half.h", "#include \"codec/row.h\""), "");
    EXPECT_NE(complaint("src/codec/row.cpp", "  #  include \"cpu/kernel_table.h\""), "");
    EXPECT_NE(complaint("src/cpu/avx2_read.cpp", "#include \"cache/tile_store.h\""), "");
    EXPECT_NE(complaint("src/cache/read_path.cpp", "#include \"ggml/abi.h\""), "");
    EXPECT_NE(complaint("src/cache/read_path.cpp", "#include <ggml.h>"), "");
    EXPECT_NE(complaint("src/ggml/adapter.cpp", "#include \"llama.h\""), "");
    EXPECT_NE(complaint("src/capi/tightkv_c.cpp", "#include \"ggml/stats.h\""), "");
    EXPECT_NE(complaint("tool/demo.cpp", "#include <CLI/CLI.hpp>"), "");
    EXPECT_NE(complaint("tool/demo.cpp", "#include \"llama.h\""), "");
    EXPECT_NE(complaint("src/cache/cache_spec.cpp", "#include \"lab/methods/method.h\""), "");
    EXPECT_NE(complaint("lab/methods/cat.cpp", "#include \"llama.h\""), "");
    EXPECT_NE(complaint("src/new/file.cpp", "#include \"base/half.h\""), "");
    EXPECT_EQ(complaint("src/cache/read_path.cpp", "#include \"codec/row.h\""), "");
    EXPECT_EQ(complaint("src/ggml/adapter.cpp", "#include \"ggml-backend-impl.h\""), "");
    EXPECT_EQ(complaint("tool/engine_llama.cpp", "#include \"llama.h\""), "");
    EXPECT_EQ(complaint("tool/main.cpp", "#include <CLI/CLI.hpp>"), "");
}
