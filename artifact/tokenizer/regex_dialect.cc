// From Oniguruma's syntax to PCRE2's. What both read alike passes; what they read differently is rewritten or refused.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/regex.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

constexpr char kSpace[] = "\\p{White_Space}";
// Oniguruma counts the superscripts and fractions of Latin-1 in, but no other such numbers.
constexpr char kWord[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
constexpr absl::string_view kCategories[] = {
    "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs", "Any"};
constexpr absl::string_view kBinary[] = {"Alphabetic", "White_Space", "Lowercase", "Uppercase", "Emoji"};

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool IsLetterOrDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// A letter that folds to several, which Oniguruma takes for one another without case ("ß" and "ss"), PCRE2 does not.
struct LongFold {
  char32_t letter;
  std::u32string folded;
};
const std::vector<LongFold>& LongFolds() {
  static const auto* const kFolds = [] {
    auto* out = new std::vector<LongFold>();
    for (char32_t code = 0x80; code < 0x10000; ++code) {  // there are none beyond
      if (code >= 0xD800 && code < 0xE000) continue;
      if (std::u32string folded = CaseFolded(code); folded.size() > 1) out->push_back({code, std::move(folded)});
    }
    return out;
  }();
  return *kFolds;
}

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      absl::Status status;
      const size_t before = at_;
      if (c == '\\') {
        status = Escape(false);
        if (status.ok()) status = Literal(before);
      } else if (c == '[') {
        status = Class();
        run_.clear();
      } else if (c == '(') {
        run_.clear();
        status = Group();
      } else if (c == ')') {
        run_.clear();
        if (caseless_.size() > 1) caseless_.pop_back();
        out_ += c;
        ++at_;
      } else if (c == '}' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == '+') {
        // Ruby repeats the repetition, PCRE2 makes it possessive.
        status = Refuse("\"+\" after \"{…}\"");
      } else {
        at_ += std::max<size_t>(1, Utf8Length(pattern_.substr(at_)));
        absl::StrAppend(&out_, pattern_.substr(before, at_ - before));
        status = Literal(before);
      }
      if (!status.ok()) return status;
    }
    return out_;
  }

 private:
  absl::Status Refuse(absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern_, "\": ", what, " at byte ", at_, " is not supported"));
  }
  // What has just been read from `begin` on, outside a class: letters in a row must be no long fold where case does not
  // count.
  absl::Status Literal(size_t begin) {
    if (!caseless_.back()) return absl::OkStatus();
    absl::string_view text = pattern_.substr(begin, at_ - begin);
    char32_t code = 0;
    size_t length = 0;
    if (text.size() > 1 && text[0] == '\\') {
      if (text[1] == 'x' || text[1] == 'u') {
        code = CodeOf(text);
      } else if (IsLetterOrDigit(text[1])) {
        run_.clear();  // a class, a property, white space
        return text[1] == 'p' || text[1] == 'P' ? Refuse("a property without case") : absl::OkStatus();
      } else {
        code = FirstCodePoint(text.substr(1), &length);
      }
    } else if (text == "{" && !run_.empty()) {
      run_ += run_.back();
    } else if (!text.empty() && (static_cast<unsigned char>(text[0]) >= 0x80 || IsLetterOrDigit(text[0]))) {
      code = Utf8Length(text) > 0 ? FirstCodePoint(text, &length) : 0;
    } else if (text == "\\") {
      return absl::OkStatus();  // the quoted character comes next
    } else {
      run_.clear();
      return absl::OkStatus();
    }
    if (code != 0) run_ += CaseFolded(code);
    for (const LongFold& fold : LongFolds()) {
      const std::u32string& folded = fold.folded;
      if (run_.size() >= folded.size() && run_.compare(run_.size() - folded.size(), folded.size(), folded) == 0)
        return Refuse("a letter that is several without case");
    }
    if (text == "{") run_.clear();
    return absl::OkStatus();
  }
  // Of \xhh, \x{h…}, \uhhhh.
  static char32_t CodeOf(absl::string_view escape) {
    char32_t code = 0;
    for (const char c : escape.substr(2)) {
      if (IsHex(c))
        code =
            std::min<char32_t>(0x110000, code * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10));
    }
    return code;
  }
  // What has just been read in a class, its `begin` on.
  absl::Status CaselessClass(size_t begin) const {
    if (!caseless_.back()) return absl::OkStatus();
    for (const char c : pattern_.substr(begin, at_ - begin)) {
      const bool plain = static_cast<unsigned char>(c) < 0x80 && c != '\\';
      if (!plain) return Refuse("a class of other than ASCII characters without case");
    }
    return absl::OkStatus();
  }
  char Peek(size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }

  absl::Status Group() {
    static constexpr absl::string_view kKnown[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)", "(?-i:"};
    if (Peek(1) != '?') {
      if (Peek(1) == '*') return Refuse("\"(*\"");
      out_ += '(';
      ++at_;
      caseless_.push_back(caseless_.back());
      return absl::OkStatus();
    }
    for (const absl::string_view group : kKnown) {
      if (pattern_.substr(at_, group.size()) != group) continue;
      if (group == "(?i)") {
        // Behind something, Ruby's holds what follows together, "|" too; PCRE2's does not.
        if (at_ > 0 && pattern_[at_ - 1] != '(' && pattern_[at_ - 1] != ':' && pattern_[at_ - 1] != '|')
          return Refuse("\"(?i)\" behind the beginning");
        caseless_.back() = true;
      } else {
        caseless_.push_back(group == "(?i:" || (group != "(?-i:" && caseless_.back()));
      }
      absl::StrAppend(&out_, group);
      at_ += group.size();
      return absl::OkStatus();
    }
    return Refuse("this kind of group");
  }

  // Between "[" and "]": single characters, ranges, escapes.
  absl::Status Class() {
    const size_t begin = at_;
    out_ += '[';
    ++at_;
    if (Peek(0) == '^') {
      if (caseless_.back()) return Refuse("a negated class without case");
      out_ += '^';
      ++at_;
    }
    for (bool first = true; at_ < pattern_.size(); first = false) {
      const char c = pattern_[at_];
      if (c == ']' && !first) {
        out_ += ']';
        ++at_;
        return CaselessClass(begin);
      }
      if (c == '[') return Refuse("a class inside a class");
      if (c == '&' && Peek(1) == '&') return Refuse("\"&&\"");
      if (c == '\\') {
        if (absl::Status status = Escape(true); !status.ok()) return status;
        continue;
      }
      if (c == ']') out_ += '\\';
      out_ += c;
      ++at_;
    }
    return Refuse("a class without its end");
  }

  absl::Status Escape(bool in_class) {
    const char c = Peek(1);
    if (c == '\0') return Refuse("a lone \"\\\"");
    const auto emit = [&](absl::string_view inside, bool negated) {
      if (in_class) {
        absl::StrAppend(&out_, inside);
      } else {
        absl::StrAppend(&out_, negated ? "[^" : "[", inside, "]");
      }
      at_ += 2;
      return absl::OkStatus();
    };
    switch (c) {
      case 's':
        return emit(kSpace, false);
      case 'S':
        return in_class ? emit("\\P{White_Space}", false) : emit(kSpace, true);
      case 'w':
        return emit(kWord, false);
      case 'W':
        if (in_class) return Refuse("\"\\W\" in a class");
        return emit(kWord, true);
      case 'd':
        return emit("\\p{Nd}", false);
      case 'D':
        return emit("\\P{Nd}", false);
      case 'p':
      case 'P':
        return Property();
      case 'x':
        return Hex();
      case 'u':
        for (size_t i = 2; i < 6; ++i) {
          if (!IsHex(Peek(i))) return Refuse("\"\\u\" without four hex digits");
        }
        absl::StrAppend(&out_, "\\x{", pattern_.substr(at_ + 2, 4), "}");
        at_ += 6;
        return absl::OkStatus();
      case 'b':
      case 'B':
        if (in_class) return Refuse("\"\\b\" in a class");
        absl::StrAppend(&out_, c == 'b' ? "(?:(?<=[" : "(?:(?<![", kWord, "])(?![", kWord, "])|",
                        c == 'b' ? "(?<![" : "(?<=[", kWord, "])(?=[", kWord, "]))");
        at_ += 2;
        return absl::OkStatus();
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        break;
      case 'v':
        absl::StrAppend(&out_, "\\x0b");
        at_ += 2;
        return absl::OkStatus();
      case 'A':
      case 'z':
      case 'Z':
        if (in_class) return Refuse("an anchor in a class");
        break;
      default:
        if (IsLetterOrDigit(c)) return Refuse(absl::StrCat("\"\\", std::string(1, c), "\""));
        // A quoted character. PCRE2 takes a backslash before a byte of a longer character literally, so leave it out.
        if (static_cast<unsigned char>(c) >= 0x80) {
          ++at_;
          return absl::OkStatus();
        }
    }
    absl::StrAppend(&out_, pattern_.substr(at_, 2));
    at_ += 2;
    return absl::OkStatus();
  }

  // \p{L}, \p{^L}, \P{L}; a single letter without braces is PCRE2's alone.
  absl::Status Property() {
    bool negated = Peek(1) == 'P';
    const size_t end = pattern_.find('}', at_);
    if (Peek(2) != '{' || end == absl::string_view::npos) return Refuse("\"\\p\" without \"{…}\"");
    absl::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    bool plain = false;
    for (const absl::string_view known : kCategories) plain = plain || known == name;
    for (const absl::string_view known : kBinary) plain = plain || known == name;
    for (const char c : name) {
      if (!IsLetterOrDigit(c) && c != '_') return Refuse(absl::StrCat("property \"", name, "\""));
    }
    absl::StrAppend(&out_, negated ? "\\P{" : "\\p{", plain ? "" : "sc:", name, "}");
    at_ = end + 1;
    return absl::OkStatus();
  }

  absl::Status Hex() {
    size_t end = at_ + 2;
    if (Peek(2) == '{') {
      end = pattern_.find('}', at_);
      if (end == absl::string_view::npos) return Refuse("\"\\x{\" without its end");
      ++end;
    } else {
      while (end < pattern_.size() && end < at_ + 4 && IsHex(pattern_[end])) ++end;
      if (end == at_ + 2) return Refuse("\"\\x\" without hex digits");
    }
    absl::StrAppend(&out_, pattern_.substr(at_, end - at_));
    at_ = end;
    return absl::OkStatus();
  }

  absl::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> caseless_ = {false};  // of the groups that are open
  std::u32string run_;                    // letters in a row without case, folded
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern) {
  return Translator(pattern).Run();
}

std::string EscapeRegex(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = IsLetterOrDigit(c) || c == '_' || static_cast<unsigned char>(c) >= 0x80;
    if (!plain) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace rlhf::artifact
