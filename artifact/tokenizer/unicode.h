// UTF-8, and the character classes that tokenizers split and normalize by. Pure functions; Unicode tables are
// utf8proc's.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace rlhf::artifact {

// Length in bytes of the valid UTF-8 sequence at the beginning, 0 when there is none.
size_t Utf8Length(absl::string_view bytes);
bool IsValidUtf8(absl::string_view bytes);
// The rule for invalid UTF-8: U+FFFD for each maximal part that could have begun a sequence (Unicode 3.9, "best
// practice"; what Python's errors="replace" and Rust's from_utf8_lossy do).
std::string ReplaceInvalidUtf8(absl::string_view bytes);

// The first code point of valid, not empty UTF-8.
char32_t FirstCodePoint(absl::string_view text, size_t* length);
void AppendUtf8(char32_t code, std::string* out);

bool IsWhitespace(char32_t code);      // property White_Space
bool IsNumeric(char32_t code);         // categories N*
bool IsPunctuation(char32_t code);     // categories P*, and all ASCII punctuation ("+", "<" too)
bool IsMark(char32_t code);            // categories M*
bool IsNonspacingMark(char32_t code);  // category Mn
bool IsControl(char32_t code);         // categories Cc, Cf, Co
// Word character of Rust's regular expressions: Alphabetic, M*, Nd, Pc, and the two joiners.
bool IsWord(char32_t code);
// Unconditional full lower case; one code point may become two.
void AppendLowercase(char32_t code, std::string* out);
// Simple upper case, and "SS" for "ß".
void AppendUppercase(char32_t code, std::string* out);
// Full case folding: one code point, or two or three for some letters ("ß", "ﬁ").
std::u32string CaseFolded(char32_t code);
bool IsLetter(char32_t code);  // categories L*
// Python's isprintable: none of the categories C* and Z*, but for the space.
bool IsPrintable(char32_t code);

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
std::string ToUnicodeForm(absl::string_view text, UnicodeForm form);

// Length in bytes of the extended grapheme cluster at the beginning of valid, not empty UTF-8.
size_t GraphemeLength(absl::string_view text);

}  // namespace rlhf::artifact
