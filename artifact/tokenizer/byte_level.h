// GPT-2's byte-level alphabet: every byte has a printable character, so that any text is a sequence of known symbols.
// Pure functions.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace rlhf::artifact {

// The pattern of GPT-2's pre-tokenizer.
inline constexpr char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

const std::string& ByteSymbol(unsigned char byte);  // UTF-8
void AppendByteSymbols(absl::string_view bytes, std::string* out);
// Appends the bytes that a token stands for; a token with a character outside the alphabet stands for itself.
void AppendBytesOfToken(absl::string_view token, std::string* out);

}  // namespace rlhf::artifact
