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
    const size_t limit = kFreeGrowthBytes + kMaxGrowth * BytesOf(*tokens);
    for (const auto& step : steps_) {
      if (absl::Status status = step->Apply(tokens); !status.ok()) return status;
      // Twenty steps that each double a text would make a million times as much of it.
      if (BytesOf(*tokens) > limit) {
        return absl::ResourceExhaustedError(
            absl::StrCat("decoding made more than ", limit, " bytes, ", kMaxGrowth,
                         " times what the tokens have: the decoder's steps blow it up"));
      }
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kFreeGrowthBytes = 1 << 20, kMaxGrowth = 16;
  static size_t BytesOf(const std::vector<std::string>& tokens) {
    size_t bytes = 0;
    for (const std::string& token : tokens) bytes += token.size();
    return bytes;
  }

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
