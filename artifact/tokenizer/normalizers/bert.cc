// BertNormalizer: cleans, sets CJK characters apart, strips accents, lowers.
#include <optional>

#include "artifact/tokenizer/normalizers/factories.h"

namespace rlhf::artifact {
namespace {

// The blocks of BERT's original tokenization.py, as the `tokenizers` library has them.
bool IsChinese(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

class BertNormalizer : public Normalizer {
 public:
  BertNormalizer(bool clean, bool chinese, bool strip_accents, bool lower)
      : clean_(clean), chinese_(chinese), strip_accents_(strip_accents), lower_(lower) {}

  absl::Status Normalize(NormalizedText* text) const override {
    std::string out;
    ForEach(text->text, [&](char32_t code) {
      if (clean_) {
        const bool space = code == '\t' || code == '\n' || code == '\r' || IsWhitespace(code);
        if (code == 0 || code == 0xFFFD || (IsControl(code) && !(code == '\t' || code == '\n' || code == '\r'))) {
          if (out.empty()) text->keeps_start = false;
          return;
        }
        if (space) code = ' ';
      }
      const bool apart = chinese_ && IsChinese(code);
      if (apart) out += ' ';
      AppendUtf8(code, &out);
      if (apart) out += ' ';
    });
    if (strip_accents_) {
      std::string bare;
      ForEach(ToUnicodeForm(out, UnicodeForm::kNfd), [&](char32_t code) {
        if (!IsNonspacingMark(code)) AppendUtf8(code, &bare);
        if (bare.empty()) text->keeps_start = false;
      });
      out = std::move(bare);
    }
    if (lower_) {
      std::string lowered;
      ForEach(out, [&](char32_t code) { AppendLowercase(code, &lowered); });
      out = std::move(lowered);
    }
    text->text = std::move(out);
    return absl::OkStatus();
  }

 private:
  template <typename Visit>
  static void ForEach(absl::string_view text, Visit visit) {
    while (!text.empty()) {
      size_t length = 0;
      visit(FirstCodePoint(text, &length));
      text.remove_prefix(length);
    }
  }

  bool clean_, chinese_, strip_accents_, lower_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakeBertNormalizer(JsonObject* json) {
  const bool clean = json->Flag("clean_text", true), chinese = json->Flag("handle_chinese_chars", true),
             lower = json->Flag("lowercase", true);
  return std::make_unique<BertNormalizer>(clean, chinese, json->Flag("strip_accents", lower), lower);
}

}  // namespace rlhf::artifact
