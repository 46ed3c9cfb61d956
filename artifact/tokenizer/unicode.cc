#include "artifact/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

namespace rlhf::artifact {
namespace {

utf8proc_category_t Category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

// Leading bytes that are ASCII, eight at a time.
size_t AsciiPrefix(absl::string_view bytes) {
  size_t at = 0;
  uint64_t block = 0;
  while (at + sizeof(block) <= bytes.size()) {
    std::memcpy(&block, bytes.data() + at, sizeof(block));
    if ((block & 0x8080808080808080ULL) != 0) break;
    at += sizeof(block);
  }
  while (at < bytes.size() && static_cast<unsigned char>(bytes[at]) < 0x80) ++at;
  return at;
}

// Bytes of a sequence that breaks off: its lead byte with the tail bytes that could have belonged to it.
size_t InvalidLength(absl::string_view bytes) {
  const auto lead = static_cast<unsigned char>(bytes[0]);
  const size_t wanted = lead >= 0xF0 && lead <= 0xF4   ? 4
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xC2 && lead <= 0xDF ? 2
                                                       : 1;
  size_t length = 1;
  while (length < wanted && length < bytes.size()) {
    const auto next = static_cast<unsigned char>(bytes[length]);
    unsigned low = 0x80, high = 0xBF;
    if (length == 1 && lead == 0xE0) low = 0xA0;
    if (length == 1 && lead == 0xED) high = 0x9F;
    if (length == 1 && lead == 0xF0) low = 0x90;
    if (length == 1 && lead == 0xF4) high = 0x8F;
    if (next < low || next > high) break;
    ++length;
  }
  return length;
}

// Letters by category, and what else is Alphabetic (Other_Alphabetic outside M* is small: circled letters).
bool IsAlphabeticOrMark(char32_t code) {
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return true;
    default:
      return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
             (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
  }
}

}  // namespace

size_t Utf8Length(absl::string_view s) {
  if (s.empty()) return 0;
  const auto at = [&](size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0U; };
  const auto tail = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  const unsigned a = at(0);
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF) return tail(1) ? 2 : 0;
  if (a >= 0xE0 && a <= 0xEF) {
    if (!tail(1) || !tail(2) || (a == 0xE0 && at(1) < 0xA0) || (a == 0xED && at(1) > 0x9F)) return 0;
    return 3;
  }
  if (a >= 0xF0 && a <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3) || (a == 0xF0 && at(1) < 0x90) || (a == 0xF4 && at(1) > 0x8F)) return 0;
    return 4;
  }
  return 0;
}

bool IsValidUtf8(absl::string_view bytes) {
  while (true) {
    bytes.remove_prefix(AsciiPrefix(bytes));
    if (bytes.empty()) return true;
    const size_t length = Utf8Length(bytes);
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
}

std::string ReplaceInvalidUtf8(absl::string_view bytes) {
  if (IsValidUtf8(bytes)) return std::string(bytes);
  std::string out;
  while (!bytes.empty()) {
    size_t length = Utf8Length(bytes);
    if (length > 0) {
      out.append(bytes.data(), length);
    } else {
      out += "\xEF\xBF\xBD";
      length = InvalidLength(bytes);
    }
    bytes.remove_prefix(length);
  }
  return out;
}

char32_t FirstCodePoint(absl::string_view text, size_t* length) {
  const auto at = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const char32_t lead = at(0);
  if (lead < 0x80 || text.size() < 2) {
    *length = 1;
    return lead;
  }
  if (lead < 0xE0 || text.size() < 3) {
    *length = 2;
    return ((lead & 0x1F) << 6) | (at(1) & 0x3F);
  }
  if (lead < 0xF0 || text.size() < 4) {
    *length = 3;
    return ((lead & 0x0F) << 12) | ((at(1) & 0x3F) << 6) | (at(2) & 0x3F);
  }
  *length = 4;
  return ((lead & 0x07) << 18) | ((at(1) & 0x3F) << 12) | ((at(2) & 0x3F) << 6) | (at(3) & 0x3F);
}

void AppendUtf8(char32_t code, std::string* out) {
  const auto tail = [&](int shift) { *out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    *out += static_cast<char>(code);
  } else if (code < 0x800) {
    *out += static_cast<char>(0xC0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    *out += static_cast<char>(0xE0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    *out += static_cast<char>(0xF0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

bool IsWhitespace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

bool IsNumeric(char32_t code) {
  const auto category = Category(code);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(char32_t code) {
  if (code < 0x80)
    return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
           (code >= 123 && code <= 126);
  const auto category = Category(code);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsMark(char32_t code) {
  const auto category = Category(code);
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

bool IsNonspacingMark(char32_t code) {
  return Category(code) == UTF8PROC_CATEGORY_MN;
}

bool IsControl(char32_t code) {
  const auto category = Category(code);
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

bool IsWord(char32_t code) {
  if (code < 0x80)
    return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z') || code == '_';
  const auto category = Category(code);
  return code == 0x200C || code == 0x200D || category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_PC ||
         IsAlphabeticOrMark(code);
}

void AppendLowercase(char32_t code, std::string* out) {
  if (code < 0x80) {
    *out += static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code);
    return;
  }
  // The only unconditional lower case of more than one code point (SpecialCasing.txt).
  if (code == 0x130) {
    *out += "i\xCC\x87";
    return;
  }
  AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))), out);
}

void AppendUppercase(char32_t code, std::string* out) {
  if (code == 0xDF) {
    *out += "SS";
    return;
  }
  AppendUtf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))), out);
}

bool IsLetter(char32_t code) {
  const auto category = Category(code);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsPrintable(char32_t code) {
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return code == ' ';
    default:
      return true;
  }
}

std::u32string CaseFolded(char32_t code) {
  utf8proc_int32_t parts[8];
  int unused = 0;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts, std::size(parts), UTF8PROC_CASEFOLD, &unused);
  if (count < 1 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) return {code};
  return {parts, parts + count};
}

std::string ToUnicodeForm(absl::string_view text, UnicodeForm form) {
  int options = UTF8PROC_STABLE;
  // Below this lead byte nothing changes: U+0300 is the first that composes, U+00A0 the first that decomposes.
  unsigned char first_that_changes = 0x80;
  switch (form) {
    case UnicodeForm::kNfc:
      options |= UTF8PROC_COMPOSE;
      first_that_changes = 0xCC;
      break;
    case UnicodeForm::kNfd:
      options |= UTF8PROC_DECOMPOSE;
      break;
    case UnicodeForm::kNfkc:
      options |= UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
      break;
    case UnicodeForm::kNfkd:
      options |= UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
      break;
  }
  const bool same =
      std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<unsigned char>(c) < first_that_changes; });
  // A tail byte (0x80 to 0xBF) is below U+0300's lead byte, too.
  if (same || text.empty()) return std::string(text);
  // As utf8proc_map, but for the order of marks: that swaps neighbours, whose time is the square of a run of marks.
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size() + 1);
  const auto flags = static_cast<utf8proc_option_t>(options);
  for (absl::string_view rest = text; !rest.empty();) {
    size_t length = 0;
    const auto code = static_cast<utf8proc_int32_t>(FirstCodePoint(rest, &length));
    utf8proc_int32_t parts[32];  // the longest decomposition has 18
    int unused = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(code, parts, std::size(parts), flags, &unused);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) return std::string(text);
    codes.insert(codes.end(), parts, parts + count);
    rest.remove_prefix(length);
  }
  const auto order = [](utf8proc_int32_t code) {
    const bool ideograph = code >= 0x3400 && code < 0xA000;  // most of a long text's, and no marks
    return code < 0x300 || ideograph ? 0 : static_cast<int>(utf8proc_get_property(code)->combining_class);
  };
  for (auto begin = codes.begin(); begin != codes.end();) {
    const auto end = std::find_if(begin, codes.end(), [&](utf8proc_int32_t code) { return order(code) == 0; });
    std::stable_sort(begin, end,
                     [&](utf8proc_int32_t left, utf8proc_int32_t right) { return order(left) < order(right); });
    begin = end == codes.end() ? end : end + 1;
  }
  const auto count = static_cast<utf8proc_ssize_t>(codes.size());
  codes.push_back(0);  // room for the zero byte that is put after the text
  const utf8proc_ssize_t size = utf8proc_reencode(codes.data(), count, flags);
  if (size < 0) return std::string(text);
  return std::string(reinterpret_cast<const char*>(codes.data()), static_cast<size_t>(size));
}

size_t GraphemeLength(absl::string_view text) {
  size_t length = 0;
  char32_t previous = FirstCodePoint(text, &length);
  utf8proc_int32_t state = 0;
  while (length < text.size()) {
    size_t next_length = 0;
    const char32_t next = FirstCodePoint(text.substr(length), &next_length);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(previous), static_cast<utf8proc_int32_t>(next),
                                         &state)) {
      break;
    }
    previous = next;
    length += next_length;
  }
  return length;
}

}  // namespace rlhf::artifact
