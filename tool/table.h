// One table, four ways to write it. Rows are JSON objects; columns say which fields a person sees and how they are rounded.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace tightkv::tool {

using Json = nlohmann::ordered_json;

struct Column {
    std::string key;    // field of the row
    std::string title;  // heading in markdown
    std::string format; // fmt format of the number in markdown, for example "{:.4f}"; empty: as it is
};

// Markdown: the columns, padded so that it also reads well in a terminal; numbers to the right. A missing field is an empty cell.
std::string to_markdown(const std::vector<Column>& columns, const std::vector<Json>& rows);
// CSV (RFC 4180, with a heading): all fields of the rows in the order of their first appearance, numbers unrounded.
std::string to_csv(const std::vector<Json>& rows);
// One JSON object a line.
std::string to_jsonl(const std::vector<Json>& rows);
std::string to_json(const Json& document); // indented, ends with a newline

enum class TableFormat { md, csv, json, jsonl };
TableFormat parse_table_format(std::string_view name); // throws Failure with the accepted names

// `about` holds what is said once beside the rows: in JSON they become its array `results`, in JSONL every line carries it; md and csv
// have the rows alone, where a field of an inner object is named outer.inner.
std::string write_table(TableFormat format, const std::vector<Column>& columns, const std::vector<Json>& rows, const Json& about);

} // namespace tightkv::tool
