// Text files and how they are cut into chunks of tokens.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tightkv::tool {

using Token = int; // llama_token

std::string              read_text(const std::string& path); // throws Failure; refuses an empty file
std::vector<std::string> split_list(std::string_view list);  // "a,b" -> {a, b}; blanks around items are dropped, empty items stay

// Chunk c is tokens [c*ctx, (c+1)*ctx); bos >= 0 takes the place of the first token of every chunk (as llama-perplexity does). Throws
// Failure with the counts if the tokens do not suffice; `what` names the text there.
std::vector<std::vector<Token>> cut_chunks(const std::vector<Token>& tokens, int ctx, int chunks, Token bos, const std::string& what);

} // namespace tightkv::tool
