#include "artifact/tokenizer/decoder.h"

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/decoders/factories.h"

namespace rlhf::artifact {
namespace {

constexpr int kMaxDepth = 16;

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> steps) : steps_(std::move(steps)) {}
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    for (const auto& step : steps_) {
      if (absl::Status status = step->Apply(tokens); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Decoder>> steps_;
};

absl::StatusOr<std::unique_ptr<Decoder>> MakeSequence(JsonObject* json, int depth) {
  const nlohmann::json& list = json->Get("decoders");
  if (!list.is_array()) return json->Bad("decoders", absl::StrCat("expected an array, found ", Describe(list)));
  std::vector<std::unique_ptr<Decoder>> steps;
  for (size_t i = 0; i < list.size(); ++i) {
    auto step = MakeDecoder(list[i], absl::StrCat(json->PathOf("decoders"), "[", i, "]"), depth + 1);
    if (!step.ok()) return step.status();
    if (*step != nullptr) steps.push_back(*std::move(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence(json, depth);
  if (type == "ByteLevel") return MakeByteLevelDecoder(json);
  if (type == "ByteFallback") return MakeByteFallback(json);
  if (type == "Fuse") return MakeFuse(json);
  if (type == "Replace") return MakeReplaceDecoder(json);
  if (type == "Strip") return MakeStripDecoder(json);
  if (type == "Metaspace") return MakeMetaspaceDecoder(json);
  if (type == "WordPiece") return MakeWordPieceDecoder(json);
  if (type == "BPEDecoder") return MakeBpeDecoder(json);
  return json->Bad("type", absl::StrCat("found \"", type.substr(0, 40),
                                        "\"; supported: Sequence, ByteLevel, ByteFallback, Fuse, Replace, Strip, "
                                        "Metaspace, WordPiece, BPEDecoder"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const nlohmann::json& json, const std::string& path, int depth) {
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
