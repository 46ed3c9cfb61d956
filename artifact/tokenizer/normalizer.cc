#include "artifact/tokenizer/normalizer.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/normalizers/factories.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  absl::Status Normalize(NormalizedText* text) const override {
    for (const auto& step : steps_) {
      if (absl::Status status = step->Normalize(text); !status.ok()) return status;
      if (absl::Status status = text->CheckSize(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

absl::StatusOr<std::unique_ptr<Normalizer>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence<Sequence>(json, "normalizers", depth, MakeNormalizer);
  if (type == "NFC") return MakeUnicodeForm(json, UnicodeForm::kNfc);
  if (type == "NFD") return MakeUnicodeForm(json, UnicodeForm::kNfd);
  if (type == "NFKC") return MakeUnicodeForm(json, UnicodeForm::kNfkc);
  if (type == "NFKD") return MakeUnicodeForm(json, UnicodeForm::kNfkd);
  if (type == "Lowercase") return MakeLowercase(json);
  if (type == "Strip") return MakeStrip(json);
  if (type == "StripAccents") return MakeStripAccents(json);
  if (type == "Prepend") return MakePrepend(json);
  if (type == "Replace") return MakeReplace(json);
  if (type == "Precompiled") return MakePrecompiled(json);
  if (type == "BertNormalizer") return MakeBertNormalizer(json);
  return json->Bad("type",
                   absl::StrCat("found \"", type,
                                "\"; supported: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, "
                                "Prepend, Replace, Precompiled, BertNormalizer"));
}

}  // namespace

absl::Status NormalizedText::CheckSize() const {
  if (text.size() <= limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("normalizing a text made it longer than ", limit,
                                                   " bytes: are the normalizer's replacements meant to be so long?"));
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(const nlohmann::json& json, const std::string& path,
                                                           int depth) {
  return MakeStep(json, path, depth, MakeOne);
}

}  // namespace rlhf::artifact
