// Lowercase, Strip, StripAccents: what looks at one character at a time.
#include "artifact/tokenizer/normalizers/factories.h"

namespace rlhf::artifact {
namespace {

class Lowercase : public Normalizer {
 public:
  absl::Status Normalize(NormalizedText* text) const override {
    std::string out;
    out.reserve(text->text.size());
    for (absl::string_view rest = text->text; !rest.empty();) {
      size_t length = 0;
      AppendLowercase(FirstCodePoint(rest, &length), &out);
      rest.remove_prefix(length);
    }
    text->text = std::move(out);
    return absl::OkStatus();
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Normalize(NormalizedText* text) const override {
    absl::string_view kept = text->text;
    size_t length = 0;
    while (left_ && !kept.empty() && IsWhitespace(FirstCodePoint(kept, &length))) {
      kept.remove_prefix(length);
      text->keeps_start = false;
    }
    while (right_ && !kept.empty()) {
      size_t last = kept.size() - 1;
      while (last > 0 && (static_cast<unsigned char>(kept[last]) & 0xC0) == 0x80) --last;
      if (!IsWhitespace(FirstCodePoint(kept.substr(last), &length))) break;
      kept = kept.substr(0, last);
    }
    text->text = std::string(kept);
    return absl::OkStatus();
  }

 private:
  bool left_, right_;
};

class StripAccents : public Normalizer {
 public:
  absl::Status Normalize(NormalizedText* text) const override {
    std::string out;
    for (absl::string_view rest = text->text; !rest.empty();) {
      size_t length = 0;
      if (!IsMark(FirstCodePoint(rest, &length))) {
        out.append(rest.data(), length);
      } else if (out.empty()) {
        text->keeps_start = false;
      }
      rest.remove_prefix(length);
    }
    text->text = std::move(out);
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakeLowercase(JsonObject*) {
  return std::make_unique<Lowercase>();
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeStrip(JsonObject* json) {
  return std::make_unique<Strip>(json->Flag("strip_left"), json->Flag("strip_right"));
}

absl::StatusOr<std::unique_ptr<Normalizer>> MakeStripAccents(JsonObject*) {
  return std::make_unique<StripAccents>();
}

}  // namespace rlhf::artifact
