// Split: by a text or a regular expression, with every behaviour.
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pattern.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"

namespace rlhf::artifact {
namespace {

class Split : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Apply(std::vector<Piece>* pieces, TextArena*) const override {
    std::vector<Piece> out;
    std::vector<Span> spans;
    for (const Piece& piece : *pieces) {
      spans.clear();
      if (absl::Status status = SpansOf(pattern_.regex, piece.text, &spans); !status.ok()) return status;
      if (invert_) {
        for (Span& span : spans) span.is_match = !span.is_match;
      }
      AppendSplit(piece, spans, behavior_, &out);
    }
    *pieces = std::move(out);
    return absl::OkStatus();
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace

absl::StatusOr<SplitBehavior> ReadBehavior(JsonObject* json, const std::optional<std::string>& fallback) {
  const std::string name = json->Text("behavior", fallback);
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return json->Bad("behavior",
                   absl::StrCat("found \"", name.substr(0, 40),
                                "\"; supported: Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous"));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeSplit(JsonObject* json) {
  auto pattern = ReadPattern(json);
  if (!pattern.ok()) return pattern.status();
  auto behavior = ReadBehavior(json, std::nullopt);
  if (!behavior.ok()) return behavior.status();
  return std::make_unique<Split>(*std::move(pattern), *behavior, json->Flag("invert", false));
}

}  // namespace rlhf::artifact
