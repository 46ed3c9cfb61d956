#include "artifact/tokenizer/pre_tokenizer.h"

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  absl::Status Apply(std::vector<Piece>* pieces, TextArena* arena) const override {
    for (const auto& step : steps_) {
      if (absl::Status status = step->Apply(pieces, arena); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  bool LeaveBytes() override { return !steps_.empty() && steps_.back()->LeaveBytes(); }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence<Sequence>(json, "pretokenizers", depth, MakePreTokenizer);
  if (type == "ByteLevel") return MakeByteLevel(json);
  if (type == "Split") return MakeSplit(json);
  if (type == "Metaspace") return MakeMetaspace(json);
  for (const char* known :
       {"Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}) {
    if (type == known) return MakeCharacterSplit(json, type);
  }
  return json->Bad("type", absl::StrCat("found \"", type,
                                        "\"; supported: Sequence, ByteLevel, Split, Metaspace, Digits, Punctuation, "
                                        "Whitespace, WhitespaceSplit, BertPreTokenizer, CharDelimiterSplit"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakePreTokenizer(const nlohmann::json& json, const std::string& path,
                                                               int depth) {
  return MakeStep(json, path, depth, MakeOne);
}

}  // namespace rlhf::artifact
