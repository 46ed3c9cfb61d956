#include "artifact/tokenizer/pre_tokenizer.h"

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"

namespace rlhf::artifact {
namespace {

constexpr int kMaxDepth = 16;

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

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeSequence(JsonObject* json, int depth) {
  const nlohmann::json& list = json->Get("pretokenizers");
  if (!list.is_array()) return json->Bad("pretokenizers", absl::StrCat("expected an array, found ", Describe(list)));
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (size_t i = 0; i < list.size(); ++i) {
    auto step = MakePreTokenizer(list[i], absl::StrCat(json->PathOf("pretokenizers"), "[", i, "]"), depth + 1);
    if (!step.ok()) return step.status();
    if (*step != nullptr) steps.push_back(*std::move(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence(json, depth);
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
