#include "number_list.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "errors.h"
#include "text.h"

namespace tightkv::tool {

std::vector<int> parse_numbers(const std::string& list, const std::string& option, int least, int most, int multiple,
                               const std::string& also) {
    std::vector<int> numbers;
    for (const std::string& item : split_list(list)) {
        int n                = 0;
        const auto [end, ec] = std::from_chars(item.data(), item.data() + item.size(), n);
        if (ec != std::errc{} || end != item.data() + item.size() || n < least || n > most || n % multiple != 0)
            throw usage_error(fmt::format("{} '{}' is not accepted; accepted: {} from {} to {}{}", option, item,
                                          multiple == 1 ? "numbers" : fmt::format("multiples of {}", multiple), least, most, also));
        if (std::find(numbers.begin(), numbers.end(), n) == numbers.end()) numbers.push_back(n);
    }
    return numbers;
}

std::vector<std::string> parse_names(const std::string& list, const std::string& what, const std::vector<std::string>& accepted) {
    std::vector<std::string> names;
    for (const std::string& item : split_list(list)) {
        if (std::find(accepted.begin(), accepted.end(), item) == accepted.end())
            throw usage_error(fmt::format("unknown {} '{}'; accepted: {}", what, item, fmt::join(accepted, ", ")));
        if (std::find(names.begin(), names.end(), item) == names.end()) names.push_back(item);
    }
    return names;
}

} // namespace tightkv::tool
