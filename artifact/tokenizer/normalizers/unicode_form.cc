// NFC, NFD, NFKC, NFKD.
#include "artifact/tokenizer/normalizers/factories.h"

namespace rlhf::artifact {
namespace {

class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(UnicodeForm form) : form_(form) {}
  absl::Status Normalize(NormalizedText* text) const override {
    text->text = ToUnicodeForm(text->text, form_);
    return absl::OkStatus();
  }

 private:
  UnicodeForm form_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakeUnicodeForm(JsonObject*, UnicodeForm form) {
  return std::make_unique<FormNormalizer>(form);
}

}  // namespace rlhf::artifact
