#include "artifact/tokenizer/decoder.h"

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/decoders/factories.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

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

absl::StatusOr<std::unique_ptr<Decoder>> MakeOne(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeSequence<Sequence>(json, "decoders", depth, MakeDecoder);
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
  return MakeStep(json, path, depth, MakeOne);
}

}  // namespace rlhf::artifact
