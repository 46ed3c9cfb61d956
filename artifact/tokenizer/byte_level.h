// GPT-2's byte-level alphabet: every byte has a printable character, so that any text is a sequence of known symbols.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace rlhf::artifact {

// The pattern of GPT-2's pre-tokenizer.
inline constexpr char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

const std::string& ByteSymbol(unsigned char byte);  // UTF-8
std::string ToByteSymbols(absl::string_view bytes);
// Symbols that are not of the alphabet pass through as they are.
std::string FromByteSymbols(absl::string_view symbols);
// Invalid UTF-8 becomes U+FFFD, one for each maximal invalid part.
std::string ReplaceInvalidUtf8(absl::string_view bytes);
// Length in bytes of the valid UTF-8 sequence at the beginning, 0 when there is none.
size_t Utf8Length(absl::string_view bytes);

}  // namespace rlhf::artifact
