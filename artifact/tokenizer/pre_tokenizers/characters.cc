// Digits, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer, CharDelimiterSplit: splits by classes of
// characters.
#include <functional>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"

namespace rlhf::artifact {
namespace {

using Predicate = std::function<bool(char32_t)>;

class CharacterSplit : public PreTokenizer {
 public:
  CharacterSplit(Predicate is_delimiter, SplitBehavior behavior)
      : is_delimiter_(std::move(is_delimiter)), behavior_(behavior) {}
  absl::Status Apply(std::vector<Piece>* pieces, TextArena*) const override {
    std::vector<Piece> out;
    std::vector<Span> spans;
    for (const Piece& piece : *pieces) {
      spans.clear();
      SpansOfCharacters(piece.text, is_delimiter_, &spans);
      AppendSplit(piece, spans, behavior_, &out);
    }
    *pieces = std::move(out);
    return absl::OkStatus();
  }

 private:
  Predicate is_delimiter_;
  SplitBehavior behavior_;
};

// Runs of word characters and runs of what is neither word nor white space: \w+|[^\w\s]+
class Words : public PreTokenizer {
 public:
  absl::Status Apply(std::vector<Piece>* pieces, TextArena*) const override {
    std::vector<Piece> out;
    for (const Piece& piece : *pieces) {
      size_t begin = 0;
      int kind = kSpace;
      const auto flush = [&](size_t end) {
        if (kind != kSpace && begin < end)
          out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
      };
      for (size_t at = 0, length = 0; at < piece.text.size(); at += length) {
        const int now = KindOf(FirstCodePoint(piece.text.substr(at), &length));
        if (now == kind) continue;
        flush(at);
        begin = at;
        kind = now;
      }
      flush(piece.text.size());
    }
    *pieces = std::move(out);
    return absl::OkStatus();
  }

 private:
  enum { kSpace, kWord, kOther };
  static int KindOf(char32_t code) {
    if (IsWhitespace(code)) return kSpace;
    return IsWord(code) ? kWord : kOther;
  }
};

class Bert : public PreTokenizer {
 public:
  absl::Status Apply(std::vector<Piece>* pieces, TextArena* arena) const override {
    if (absl::Status status = spaces_.Apply(pieces, arena); !status.ok()) return status;
    return punctuation_.Apply(pieces, arena);
  }

 private:
  CharacterSplit spaces_{IsWhitespace, SplitBehavior::kRemoved};
  CharacterSplit punctuation_{IsPunctuation, SplitBehavior::kIsolated};
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeCharacterSplit(JsonObject* json, const std::string& type) {
  if (type == "Whitespace") return std::make_unique<Words>();
  if (type == "BertPreTokenizer") return std::make_unique<Bert>();
  if (type == "WhitespaceSplit") return std::make_unique<CharacterSplit>(IsWhitespace, SplitBehavior::kRemoved);
  if (type == "Digits") {
    const bool single = json->Flag("individual_digits", false);
    return std::make_unique<CharacterSplit>(IsNumeric, single ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    auto behavior = ReadBehavior(json, "Isolated");
    if (!behavior.ok()) return behavior.status();
    return std::make_unique<CharacterSplit>(IsPunctuation, *behavior);
  }
  if (type == "CharDelimiterSplit") {
    const std::string delimiter = json->Character("delimiter");
    size_t length = 0;
    const char32_t code = delimiter.empty() ? 0 : FirstCodePoint(delimiter, &length);
    return std::make_unique<CharacterSplit>([code](char32_t c) { return c == code; }, SplitBehavior::kRemoved);
  }
  return json->Bad("type", absl::StrCat("unknown \"", type, "\""));
}

}  // namespace rlhf::artifact
