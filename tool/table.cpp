#include "table.h"

#include <algorithm>

#include <fmt/format.h>

#include "errors.h"

namespace tightkv::tool {

namespace {

std::string plain(const Json& v) { return v.is_null() ? std::string() : v.is_string() ? v.get<std::string>() : v.dump(); }

std::string markdown_cell(const Json& v, const std::string& format) {
    if (v.is_number() && !format.empty()) {
        if (v.is_number_float()) return fmt::format(fmt::runtime(format), v.get<double>());
        return format.find('f') == std::string::npos ? fmt::format(fmt::runtime(format), v.get<int64_t>())
                                                     : fmt::format(fmt::runtime(format), static_cast<double>(v.get<int64_t>()));
    }
    std::string s;
    for (const char c : plain(v)) {
        if (c == '|') s += '\\';
        s += c == '\n' || c == '\r' ? ' ' : c;
    }
    return s;
}

std::string csv_cell(const std::string& s) {
    if (s.find_first_of(",\"\r\n") == std::string::npos) return s;
    std::string q = "\"";
    for (const char c : s) {
        if (c == '"') q += '"';
        q += c;
    }
    return q + '"';
}

// Characters of UTF-8 text, for padding.
size_t width(const std::string& s) {
    return static_cast<size_t>(std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// Objects in a row become fields of their own: {"ratio": {"f16": 2}} -> {"ratio.f16": 2}.
Json flat(const Json& row) {
    Json out = Json::object();
    for (const auto& [key, value] : row.items()) {
        if (!value.is_object()) {
            out[key] = value;
            continue;
        }
        const Json inner = flat(value);
        for (const auto& [name, v] : inner.items()) out[key + "." + name] = v;
    }
    return out;
}
std::vector<Json> flat(const std::vector<Json>& rows) {
    std::vector<Json> out;
    for (const Json& row : rows) out.push_back(flat(row));
    return out;
}

} // namespace

std::string to_markdown(const std::vector<Column>& columns, const std::vector<Json>& rows) {
    std::vector<std::vector<std::string>> cells(rows.size());
    std::vector<size_t>                   widths;
    std::vector<bool>                     right;
    for (const Column& c : columns) {
        size_t w       = std::max<size_t>(3, width(c.title));
        bool   numbers = false;
        for (size_t r = 0; r < rows.size(); r++) {
            const auto it = rows[r].find(c.key);
            cells[r].push_back(it == rows[r].end() ? "" : markdown_cell(*it, c.format));
            numbers |= it != rows[r].end() && it->is_number();
            w = std::max(w, width(cells[r].back()));
        }
        widths.push_back(w);
        right.push_back(numbers);
    }
    const auto line = [&](const auto& cell) {
        std::string s = "|";
        for (size_t i = 0; i < columns.size(); i++) {
            const std::string text = cell(i);
            const std::string pad(widths[i] - width(text), ' ');
            s += " " + (right[i] ? pad + text : text + pad) + " |";
        }
        return s + "\n";
    };
    std::string s = line([&](size_t i) { return columns[i].title; });
    s += "|";
    for (size_t i = 0; i < columns.size(); i++) s += std::string(widths[i] + (right[i] ? 1 : 2), '-') + (right[i] ? ":|" : "|");
    s += "\n";
    for (const auto& row : cells) s += line([&](size_t i) { return row[i]; });
    return s;
}

std::string to_csv(const std::vector<Json>& rows) {
    std::vector<std::string> keys;
    for (const Json& row : rows)
        for (const auto& [key, value] : row.items())
            if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    std::string s;
    for (size_t i = 0; i < keys.size(); i++) s += (i ? "," : "") + csv_cell(keys[i]);
    s += "\r\n";
    for (const Json& row : rows) {
        for (size_t i = 0; i < keys.size(); i++) {
            const auto it = row.find(keys[i]);
            s += (i ? "," : "") + (it == row.end() ? std::string() : csv_cell(plain(*it)));
        }
        s += "\r\n";
    }
    return s;
}

std::string to_jsonl(const std::vector<Json>& rows) {
    std::string s;
    for (const Json& row : rows) s += row.dump() + "\n";
    return s;
}

// Names of files may be no UTF-8: what is none becomes U+FFFD.
std::string to_json(const Json& document) { return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

TableFormat parse_table_format(std::string_view name) {
    if (name == "md") return TableFormat::md;
    if (name == "csv") return TableFormat::csv;
    if (name == "json") return TableFormat::json;
    if (name == "jsonl") return TableFormat::jsonl;
    throw usage_error(fmt::format("unknown output format '{}'; accepted: md, csv, json, jsonl", name));
}

std::string write_table(TableFormat format, const std::vector<Column>& columns, const std::vector<Json>& rows, const Json& about) {
    switch (format) {
    case TableFormat::md: return to_markdown(columns, flat(rows));
    case TableFormat::csv: return to_csv(flat(rows));
    case TableFormat::jsonl: {
        std::vector<Json> lines;
        for (const Json& row : rows) {
            Json line = about;
            line.update(row);
            lines.push_back(std::move(line));
        }
        return to_jsonl(lines);
    }
    case TableFormat::json: break;
    }
    Json document       = about;
    document["results"] = rows;
    return to_json(document);
}

} // namespace tightkv::tool
