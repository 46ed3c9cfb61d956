#include "artifact/tokenizer/normalizer.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/normalizers/factories.h"

namespace rlhf::artifact {
namespace {

constexpr int kMaxDepth = 16;

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  absl::Status Normalize(NormalizedText* text) const override {
    for (const auto& step : steps_) {
      if (absl::Status status = step->Normalize(text); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

absl::StatusOr<std::unique_ptr<Normalizer>> MakeSequence(JsonObject* json, int depth) {
  const nlohmann::json& list = json->Get("normalizers");
  if (!list.is_array()) return json->Bad("normalizers", absl::StrCat("expected an array, found ", Describe(list)));
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (size_t i = 0; i < list.size(); ++i) {
    auto step = MakeNormalizer(list[i], absl::StrCat(json->PathOf("normalizers"), "[", i, "]"), depth + 1);
    if (!step.ok()) return step.status();
    if (*step != nullptr) steps.push_back(*std::move(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence(json, depth);
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

absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(const nlohmann::json& json, const std::string& path,
                                                           int depth) {
  if (json.is_null()) return nullptr;
  JsonObject object(json, path);
  if (depth > kMaxDepth) return object.Bad("type", "nested too deeply");
  const std::string type = object.Text("type");
  auto made = MakeOne(&object, type, depth);
  if (!made.ok()) return made.status();
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  return made;
}

}  // namespace rlhf::artifact
