// Metaspace, WordPiece, BPEDecoder: what puts the spaces back between words.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "artifact/tokenizer/decoders/factories.h"
#include "artifact/tokenizer/metaspace_settings.h"

namespace rlhf::artifact {
namespace {

class Metaspace : public Decoder {
 public:
  explicit Metaspace(MetaspaceSettings settings) : settings_(std::move(settings)) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    for (size_t i = 0; i < tokens->size(); ++i) {
      const bool drop = i == 0 && settings_.scheme != PrependScheme::kNever;
      (*tokens)[i] = absl::StrReplaceAll((*tokens)[i], {{settings_.replacement, drop ? "" : " "}});
    }
    return absl::OkStatus();
  }

 private:
  MetaspaceSettings settings_;
};

class WordPiece : public Decoder {
 public:
  WordPiece(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    for (size_t i = 0; i < tokens->size(); ++i) {
      std::string& token = (*tokens)[i];
      if (i > 0) token = absl::StartsWith(token, prefix_) ? token.substr(prefix_.size()) : absl::StrCat(" ", token);
      if (!cleanup_) continue;
      // One after another, in this order: a replacement may make room for the next.
      static constexpr const char* kPairs[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                                  {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                                  {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
      for (const auto& pair : kPairs) token = absl::StrReplaceAll(token, {{pair[0], pair[1]}});
    }
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class EndOfWord : public Decoder {
 public:
  explicit EndOfWord(std::string suffix) : suffix_(std::move(suffix)) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    for (size_t i = 0; i < tokens->size(); ++i)
      (*tokens)[i] = absl::StrReplaceAll((*tokens)[i], {{suffix_, i + 1 == tokens->size() ? "" : " "}});
    return absl::OkStatus();
  }

 private:
  std::string suffix_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> MakeMetaspaceDecoder(JsonObject* json) {
  auto settings = ReadMetaspace(json);
  if (!settings.ok()) return settings.status();
  return std::make_unique<Metaspace>(*std::move(settings));
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeWordPieceDecoder(JsonObject* json) {
  return std::make_unique<WordPiece>(json->Text("prefix", "##"), json->Flag("cleanup", true));
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeBpeDecoder(JsonObject* json) {
  const std::string suffix = json->Text("suffix", "</w>");
  if (suffix.empty()) return json->Bad("suffix", "expected a text, found an empty one");
  return std::make_unique<EndOfWord>(suffix);
}

}  // namespace rlhf::artifact
