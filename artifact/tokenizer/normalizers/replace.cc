// Prepend and Replace.
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/normalizers/factories.h"
#include "artifact/tokenizer/pattern.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::Status Normalize(NormalizedText* text) const override {
    if (!text->text.empty()) text->text.insert(0, prefix_);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Normalize(NormalizedText* text) const override {
    if (content_.empty() && !text->text.empty()) {
      auto at_start = MatchesAtStart(pattern_, text->text);
      if (!at_start.ok()) return at_start.status();
      text->keeps_start = text->keeps_start && !*at_start;
    }
    auto replaced = ReplaceMatches(pattern_, text->text, content_, text->limit);
    if (!replaced.ok()) return replaced.status();
    text->text = *std::move(replaced);
    return absl::OkStatus();
  }

 private:
  Pattern pattern_;
  std::string content_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakePrepend(JsonObject* json) {
  std::string prefix = json->Text("prepend");
  if (prefix.size() > kMaxContentBytes)
    return json->Bad("prepend", absl::StrCat("expected at most ", kMaxContentBytes, " bytes, found ", prefix.size()));
  return std::make_unique<Prepend>(std::move(prefix));
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeReplace(JsonObject* json) {
  auto pattern = ReadPattern(json);
  if (!pattern.ok()) return pattern.status();
  // The library moves what it has replaced already, or ends with a panic.
  if (pattern->literal.empty() && pattern->regex.MayMatchNothing())
    return json->Bad("pattern", "expected one that matches at least one character, found one that may match nothing");
  auto content = ReadContent(json);
  if (!content.ok()) return content.status();
  return std::make_unique<Replace>(*std::move(pattern), *std::move(content));
}

}  // namespace rlhf::artifact
