// Texts of others in a line of a log or on a terminal.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rlhf {

// The text with control characters as escapes ("\n", "\x1b", "\u202e"), those of Unicode that turn the direction of
// writing among them: what somebody wrote into a reason, a comment or an answer then ends no line, and moves no cursor.
// keep_lines: line ends and tabs stay. UTF-8 stays; so do bytes that are none.
inline std::string Printable(absl::string_view text, bool keep_lines = false) {
  std::string out;
  out.reserve(text.size());
  const auto at = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const auto escape = [&](unsigned code) { absl::StrAppend(&out, "\\u", absl::Hex(code, absl::kZeroPad4)); };
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char byte = at(i);
    const bool ends_line = byte == '\n' || byte == '\t';
    if ((byte < 0x20 || byte == 0x7f) && !(ends_line && keep_lines)) {
      out += ends_line ? (byte == '\n' ? "\\n" : "\\t") : absl::StrCat("\\x", absl::Hex(byte, absl::kZeroPad2));
    } else if (byte == 0xc2 && at(i + 1) >= 0x80 && at(i + 1) < 0xa0) {  // U+0080 to U+009F
      escape(at(++i));
    } else if (byte == 0xe2 && at(i + 1) == 0x80 &&
               (at(i + 2) == 0x8e || at(i + 2) == 0x8f || (at(i + 2) >= 0xaa && at(i + 2) <= 0xae))) {
      escape(0x2000 + at(i + 2) - 0x80);
      i += 2;
    } else if (byte == 0xe2 && at(i + 1) == 0x81 && at(i + 2) >= 0xa6 && at(i + 2) <= 0xa9) {
      escape(0x2040 + at(i + 2) - 0x80);
      i += 2;
    } else {
      out += static_cast<char>(byte);
    }
  }
  return out;
}

}  // namespace rlhf
