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
  auto content = ReadContent(json);
  if (!content.ok()) return content.status();
  return std::make_unique<Replace>(*std::move(pattern), *std::move(content));
}

}  // namespace rlhf::artifact
