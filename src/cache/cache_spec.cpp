// Parser and printer of cache specifications.
#include "cache/cache_spec.h"

#include <charconv>

#include "cache/exact_slots.h"

namespace tightkv {

namespace {

// "position 9: unknown format 'turbo5'; accepted: …"
Status at(size_t pos, const std::string& what, StatusCode code = StatusCode::kInvalidArgument) {
    return {code, "cache specification, position " + std::to_string(pos + 1) + ": " + what};
}

std::string quoted(std::string_view w) {
    std::string s;
    return s.append(1, '\'').append(w).append(1, '\'');
}

Status parse_format(std::string_view word, size_t pos, FormatId& id) {
    const Format*     f     = find_format(word);
    const std::string whole = pos == 0 ? "auto, " : ""; // in place of a specification, not in a part of one
    if (!f)
        return at(pos, (word.empty() ? "a format is missing" : "unknown format " + quoted(word)) + "; accepted: " + whole + format_names());
    id = f->id;
    return {};
}

Status parse_count(std::string_view word, size_t pos, int& n, int most = 1000000) {
    const auto [end, ec] = std::from_chars(word.data(), word.data() + word.size(), n);
    if (ec != std::errc{} || end != word.data() + word.size() || n < 0 || n > most)
        return at(pos, quoted(word) + " is no count; accepted: 0 to " + std::to_string(most));
    return {};
}

Status parse_mean(std::string_view word, size_t pos, int& n) {
    if (parse_count(word, pos, n).ok() && (n == 0 || (n >= kMinMeanTokens && n <= kMaxMeanTokens))) return {};
    return at(pos, quoted(word) + " is no number of tokens for a mean; accepted: 0 (off) or " + std::to_string(kMinMeanTokens) + " to " +
                       std::to_string(kMaxMeanTokens));
}

Status parse_threshold(std::string_view word, size_t pos, float& x) {
    const auto [end, ec] = std::from_chars(word.data(), word.data() + word.size(), x);
    if (ec != std::errc{} || end != word.data() + word.size() || !(x >= 0.0f && x <= 0.01f))
        return at(pos, quoted(word) + " is no threshold; accepted: 0 (off) to 0.01, for example 1e-6");
    return {};
}

Status parse_boundary(std::string_view word, size_t pos, FormatId& id, int& n) {
    const size_t x = word.rfind('x');
    if (x == std::string_view::npos) return at(pos, quoted(word) + " must be FORMATxCOUNT, for example f16x2");
    if (Status s = parse_format(word.substr(0, x), pos, id); !s.ok()) return s;
    return parse_count(word.substr(x + 1), pos + x + 1, n);
}

Status parse_file(std::string_view word, size_t pos, std::string& name) {
    const bool quote = word.size() > 1 && word.front() == '"' && word.back() == '"';
    if (quote) word = word.substr(1, word.size() - 2);
    if (word.empty()) return at(pos, "a file name is missing; accepted: FILE, \"FILE\" or auto");
    for (const char c : word)
        if (c == '"' || static_cast<unsigned char>(c) < 0x20)
            return at(pos, "a file name with quotes or control characters cannot be given; accepted: FILE or \"FILE\"");
    name = word;
    return {};
}

struct Seen {
    bool k = false, v = false, first = false, last = false, sparse_v = false, sink = false, window = false, mean = false, profile = false;
};

Status parse_part(std::string_view part, size_t pos, CacheSpec& spec, Seen& seen) {
    static constexpr const char* kWords = "accepted: k=, v=, first=, last=, sink=, window=, mean=, sparse_v=, profile=";
    const size_t                 eq     = part.find('=');
    if (eq == std::string_view::npos)
        return at(pos, (part.empty() ? std::string("a part is missing") : quoted(part) + " is no KEY=VALUE part") + "; " + kWords);
    const std::string_view key = part.substr(0, eq), value = part.substr(eq + 1);
    const size_t           vpos = pos + eq + 1;
    const auto             once = [&](bool& flag) { return flag ? at(pos, quoted(key) + " is given twice") : (flag = true, Status{}); };
    if (key == "k" || key == "v") {
        if (Status s = once(key == "k" ? seen.k : seen.v); !s.ok()) return s;
        return parse_format(value, vpos, key == "k" ? spec.k : spec.v);
    }
    if (key == "first" || key == "last") {
        const bool first = key == "first";
        if (Status s = once(first ? seen.first : seen.last); !s.ok()) return s;
        return parse_boundary(value, vpos, first ? spec.first : spec.last, first ? spec.n_first : spec.n_last);
    }
    if (key == "sparse_v") {
        if (Status s = once(seen.sparse_v); !s.ok()) return s;
        return parse_threshold(value, vpos, spec.sparse_v);
    }
    if (key == "sink" || key == "window") {
        if (Status s = once(key == "sink" ? seen.sink : seen.window); !s.ok()) return s;
        return parse_count(value, vpos, key == "sink" ? spec.sink : spec.window, kMaxExactRows);
    }
    if (key == "mean") {
        if (Status s = once(seen.mean); !s.ok()) return s;
        return parse_mean(value, vpos, spec.mean);
    }
    if (key == "profile") {
        if (Status s = once(seen.profile); !s.ok()) return s;
        if (value == "auto") return spec.self_profile = true, Status{};
        return parse_file(value, vpos, spec.profile);
    }
    return at(pos, "unknown part " + quoted(key) + "; " + kWords);
}

// The next ':' that is not inside double quotes (file names may be quoted).
size_t part_end(std::string_view text, size_t from) {
    bool quote = false;
    for (size_t i = from; i < text.size(); i++) {
        if (text[i] == '"') quote = !quote;
        if (text[i] == ':' && !quote) return i;
    }
    return text.size();
}

} // namespace

Status parse_cache_spec(std::string_view text, CacheSpec& spec) {
    if (text.empty()) return at(0, "empty; accepted: auto, " + format_names() + " or parts like k=turbo4:v=turbo3");
    if (text == "auto") text = kAutoSpec;
    CacheSpec    parsed;
    Seen         seen;
    size_t       pos      = 0;
    const size_t head_end = part_end(text, 0);
    if (text.substr(0, head_end).find('=') == std::string_view::npos) { // a bare format stands for both operands
        if (text.substr(0, head_end) == "auto") return at(0, std::string("auto takes no other parts; it stands for ").append(kAutoSpec));
        if (Status s = parse_format(text.substr(0, head_end), 0, parsed.k); !s.ok()) return s;
        parsed.v = parsed.k, seen.k = seen.v = true;
        if (head_end == text.size()) return spec = parsed, Status{};
        pos = head_end + 1;
    }
    for (;;) {
        const size_t end = part_end(text, pos);
        if (Status s = parse_part(text.substr(pos, end - pos), pos, parsed, seen); !s.ok()) return s;
        if (end == text.size()) break;
        pos = end + 1;
    }
    if (!seen.k || !seen.v)
        return at(text.size(), std::string("the format of ") + (seen.k ? "v" : "k") +
                                   " is missing; accepted: as the first part, for both, " + format_names() +
                                   ", or k= and v= with one each");
    spec = parsed;
    return {};
}

std::string CacheSpec::to_string() const {
    std::string s = k == v ? format(k).name : std::string("k=") + format(k).name + ":v=" + format(v).name;
    if (n_first) s += std::string(":first=") + format(first).name + "x" + std::to_string(n_first);
    if (n_last) s += std::string(":last=") + format(last).name + "x" + std::to_string(n_last);
    if (sink) s += ":sink=" + std::to_string(sink);
    if (window) s += ":window=" + std::to_string(window);
    if (mean) s += ":mean=" + std::to_string(mean);
    if (sparse_v != kDefaultSparseV) {
        char       text[32];
        const auto end = std::to_chars(text, text + sizeof text, sparse_v).ptr; // the shortest text that parses back
        s += ":sparse_v=" + std::string(text, end);
    }
    if (!profile.empty()) {
        const bool quote = profile == "auto" || profile.find(':') != std::string::npos;
        s += ":profile=" + (quote ? '"' + profile + '"' : profile);
    }
    if (self_profile) s += ":profile=auto";
    return s;
}

double CacheSpec::exact_bytes_per_value(int index, int n_layers, int64_t n_cells) const {
    return exact_rows(index, n_layers) && n_cells > 0 ? 2.0 * exact_slots(sink, window, n_cells) / static_cast<double>(n_cells) : 0.0;
}

double CacheSpec::bits_per_value(int n_layers, int head_dim_k, int head_dim_v, int64_t n_cells) const {
    if (n_layers < 1) return 0.0;
    const double values = head_dim_k + head_dim_v;
    double       bytes  = 0; // per cell and KV head
    for (int i = 0; i < n_layers; i++) {
        bytes += static_cast<double>(format(k_of(i, n_layers)).row_bytes(head_dim_k) + format(v_of(i, n_layers)).row_bytes(head_dim_v));
        bytes += values * exact_bytes_per_value(i, n_layers, n_cells);
    }
    return 8.0 * bytes / (n_layers * values);
}

} // namespace tightkv
