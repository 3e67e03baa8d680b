// Options that are lists: of numbers in a range, of names from a set.
#pragma once
#include <string>
#include <vector>

namespace tightkv::tool {

// "0,512" -> {0, 512}. Throws Failure (usage) that names the option and the accepted range; `multiple`: of what every number must be one;
// `also`: what else would be accepted, and when, for the end of the sentence.
std::vector<int> parse_numbers(const std::string& list, const std::string& option, int least, int most, int multiple = 1,
                               const std::string& also = "");

// Every item of the list must be one of `accepted`; throws Failure (usage) that names them. No duplicates.
std::vector<std::string> parse_names(const std::string& list, const std::string& what, const std::vector<std::string>& accepted);

} // namespace tightkv::tool
