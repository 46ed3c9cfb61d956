// Prepend and Replace.
#include "artifact/tokenizer/normalizers/factories.h"
#include "artifact/tokenizer/pattern.h"

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
    auto replaced = ReplaceMatches(pattern_, text->text, content_);
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
  return std::make_unique<Prepend>(json->Text("prepend"));
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeReplace(JsonObject* json) {
  auto pattern = ReadPattern(json);
  if (!pattern.ok()) return pattern.status();
  return std::make_unique<Replace>(*std::move(pattern), json->Text("content"));
}

}  // namespace rlhf::artifact
