// Fuse, Replace, Strip.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/decoders/factories.h"
#include "artifact/tokenizer/pattern.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kMaxDecodedBytes = 16 << 20;  // of all tokens together

class Fuse : public Decoder {
 public:
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    std::string all;
    for (const std::string& token : *tokens) all += token;
    *tokens = {std::move(all)};
    return absl::OkStatus();
  }
};

class Replace : public Decoder {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    size_t left = kMaxDecodedBytes;
    for (std::string& token : *tokens) {
      auto replaced = ReplaceMatches(pattern_, token, content_, left);
      if (!replaced.ok()) return replaced.status();
      token = *std::move(replaced);
      left -= token.size();
    }
    return absl::OkStatus();
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip : public Decoder {
 public:
  Strip(std::string content, int64_t start, int64_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    for (std::string& token : *tokens) {
      absl::string_view kept = token;
      // Both ends look at the whole token: of one that is nothing but the character, nothing stays.
      for (int64_t i = 0; i < start_ && absl::StartsWith(kept, content_); ++i) kept.remove_prefix(content_.size());
      absl::string_view end = token;
      for (int64_t i = 0; i < stop_ && absl::EndsWith(end, content_); ++i) end.remove_suffix(content_.size());
      const size_t begin = token.size() - kept.size();
      token = begin < end.size() ? token.substr(begin, end.size() - begin) : "";
    }
    return absl::OkStatus();
  }

 private:
  std::string content_;
  int64_t start_, stop_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> MakeFuse(JsonObject*) {
  return std::make_unique<Fuse>();
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeReplaceDecoder(JsonObject* json) {
  auto pattern = ReadPattern(json);
  if (!pattern.ok()) return pattern.status();
  auto content = ReadContent(json);
  if (!content.ok()) return content.status();
  return std::make_unique<Replace>(*std::move(pattern), *std::move(content));
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeStripDecoder(JsonObject* json) {
  return std::make_unique<Strip>(json->Character("content"), json->Integer("start", 0, INT32_MAX, 0),
                                 json->Integer("stop", 0, INT32_MAX, 0));
}

}  // namespace rlhf::artifact
