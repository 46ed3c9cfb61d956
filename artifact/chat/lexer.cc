#include "artifact/chat/lexer.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact::chat {
namespace {

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool IsSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      absl::Status status = Data();
      if (!status.ok()) return status;
    }
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  absl::Status Bad(absl::string_view problem) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", problem));
  }
  char Peek(size_t ahead) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }
  void Advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + count, '\n'));
    at_ += count;
  }
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  // Text up to the next "{{", "{%" or "{#", then what begins there.
  absl::Status Data() {
    size_t open = at_;
    while ((open = source_.find('{', open)) != absl::string_view::npos) {
      const char next = open + 1 < source_.size() ? source_[open + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++open;
    }
    if (open == absl::string_view::npos) {
      Add(TokenKind::kText, std::string(source_.substr(at_)));
      Advance(source_.size() - at_);
      return absl::OkStatus();
    }
    const char kind = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    absl::string_view text = source_.substr(at_, open - at_);
    if (sign == '-') {
      text = StripRight(text);
    } else if (kind != '{' && sign != '+') {
      // A tag alone at the beginning of its line takes the blanks before it.
      const size_t newline = text.rfind('\n');
      const size_t begin = newline == absl::string_view::npos ? 0 : newline + 1;
      const bool blank = std::all_of(text.begin() + begin, text.end(), IsSpace);
      if (blank && (begin > 0 || line_start_)) text = text.substr(0, begin);
    }
    if (!text.empty()) Add(TokenKind::kText, std::string(text));
    Advance(open - at_ + 2);
    if (sign == '-' || sign == '+') Advance(1);
    if (kind == '#') return Comment();
    Add(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kTagBegin, "");
    return Expression(kind == '{' ? "}}" : "%}");
  }

  static absl::string_view StripRight(absl::string_view text) {
    while (!text.empty()) {
      size_t last = text.size() - 1, length = 0;
      while (last > 0 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
      if (!IsWhitespace(FirstCodePoint(text.substr(last), &length))) break;
      text = text.substr(0, last);
    }
    return text;
  }

  // After "-%}" all white space goes, after "%}" one newline (but not after "+%}" or "}}").
  void AfterEnd(bool strip, bool trim) {
    const size_t begin = at_;
    if (strip) {
      size_t length = 0;
      while (at_ < source_.size() && IsWhitespace(FirstCodePoint(source_.substr(at_), &length))) Advance(length);
    } else if (trim && Peek(0) == '\n') {
      Advance(1);
    }
    line_start_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == absl::string_view::npos) return Bad("a comment without \"#}\"");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    Advance(end + 2 - at_);
    AfterEnd(sign == '-', sign != '+');
    return absl::OkStatus();
  }

  absl::Status Expression(absl::string_view end) {
    std::vector<char> open;  // brackets
    while (true) {
      while (IsSpace(Peek(0)) && at_ < source_.size()) Advance(1);
      if (at_ >= source_.size()) return Bad(absl::StrCat("expected \"", end, "\", found the end of the template"));
      const bool strip = Peek(0) == '-' && source_.substr(at_ + 1, 2) == end;
      const bool keep = end == "%}" && Peek(0) == '+' && source_.substr(at_ + 1, 2) == end;
      if (open.empty() && (strip || keep || source_.substr(at_, 2) == end)) {
        Add(end == "}}" ? TokenKind::kPrintEnd : TokenKind::kTagEnd, "");
        Advance(strip || keep ? 3 : 2);
        AfterEnd(strip, end == "%}" && !keep);
        return absl::OkStatus();
      }
      if (absl::Status status = OneToken(&open); !status.ok()) return status;
    }
  }

  absl::Status OneToken(std::vector<char>* open) {
    const char c = Peek(0);
    if (c == '"' || c == '\'') return String(c);
    size_t length = 1;
    if (IsNameStart(c)) {
      while (IsNameStart(Peek(length)) || IsDigit(Peek(length))) ++length;
      return Take(TokenKind::kName, length);
    }
    if (IsDigit(c)) {
      while (IsDigit(Peek(length)) || Peek(length) == '_') ++length;
      const bool fraction = Peek(length) == '.' && IsDigit(Peek(length + 1));
      if (fraction) {
        ++length;
        while (IsDigit(Peek(length))) ++length;
      }
      size_t exponent = length + 1;
      const bool letter = Peek(length) == 'e' || Peek(length) == 'E';
      if (letter && (Peek(exponent) == '+' || Peek(exponent) == '-')) ++exponent;
      const bool power = letter && IsDigit(Peek(exponent));
      if (power) {
        length = exponent;
        while (IsDigit(Peek(length))) ++length;
      }
      return Take(fraction || power ? TokenKind::kFloat : TokenKind::kInteger, length);
    }
    for (const absl::string_view two : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (source_.substr(at_, 2) == two) return Take(TokenKind::kOperator, 2);
    }
    if (!absl::StrContains("+-*/%~<>=.,:|()[]{}", std::string(1, c)) || c == '\0')
      return Bad(absl::StrCat("unexpected character \"",
                              source_.substr(at_, std::max<size_t>(1, Utf8Length(source_.substr(at_)))), "\""));
    if (c == '(' || c == '[' || c == '{') open->push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      const char wanted = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open->empty() || open->back() != wanted) return Bad(absl::StrCat("unexpected \"", std::string(1, c), "\""));
      open->pop_back();
    }
    return Take(TokenKind::kOperator, 1);
  }

  absl::Status Take(TokenKind kind, size_t length) {
    Add(kind, std::string(source_.substr(at_, length)));
    Advance(length);
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    std::string out;
    size_t i = 1;
    for (; at_ + i < source_.size() && Peek(i) != quote; ++i) {
      if (Peek(i) != '\\') {
        out += Peek(i);
        continue;
      }
      const char c = Peek(++i);
      static constexpr absl::string_view kFrom = "ntr\\'\"bfav0", kTo("\n\t\r\\'\"\b\f\a\v\0", 11);
      const size_t which = kFrom.find(c);
      if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        char32_t code = 0;
        for (size_t d = 0; d < digits; ++d) {
          const char h = Peek(++i);
          const int value = IsDigit(h)             ? h - '0'
                            : h >= 'a' && h <= 'f' ? h - 'a' + 10
                            : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                                   : -1;
          if (value < 0) return Bad("expected hex digits after \"\\x\", \"\\u\" or \"\\U\"");
          code = code * 16 + static_cast<char32_t>(value);
        }
        if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return Bad("a string escape that is no character");
        AppendUtf8(code, &out);
      } else if (c == '\n') {
        // A line that goes on.
      } else if (which != absl::string_view::npos && c != '\0') {
        out += kTo[which];
      } else {
        out += '\\';
        if (c != '\0') out += c;
      }
    }
    if (at_ + i >= source_.size()) return Bad("a string without its closing quote");
    Add(TokenKind::kString, std::move(out));
    Advance(i + 1);
    return absl::OkStatus();
  }

  absl::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // what was read last ended a line
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  std::string text = absl::StrReplaceAll(source, {{"\r\n", "\n"}, {"\r", "\n"}});
  if (absl::EndsWith(text, "\n")) text.pop_back();
  return Lexer(text).Run();
}

}  // namespace rlhf::artifact::chat
