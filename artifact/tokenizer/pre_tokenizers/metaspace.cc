// Metaspace: spaces become a visible character, words begin with it.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "artifact/tokenizer/metaspace_settings.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"

namespace rlhf::artifact {
namespace {

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(MetaspaceSettings settings) : settings_(std::move(settings)) {}

  absl::Status Apply(std::vector<Piece>* pieces, TextArena* arena) const override {
    const std::string& mark = settings_.replacement;
    std::vector<Piece> out;
    for (const Piece& piece : *pieces) {
      std::string marked = absl::StrReplaceAll(piece.text, {{" ", mark}});
      const bool wanted =
          settings_.scheme == PrependScheme::kAlways || (settings_.scheme == PrependScheme::kFirst && piece.at_start);
      if (wanted && !absl::StartsWith(marked, mark)) marked.insert(0, mark);
      const auto made = arena->New(marked.size());
      if (!made.ok()) return made.status();
      std::string* text = *made;
      text->append(marked);
      if (!settings_.split) {
        out.push_back({*text, piece.at_start});
        continue;
      }
      // Each mark begins a piece.
      const absl::string_view all = *text;
      for (size_t begin = 0; begin < all.size();) {
        const size_t end = std::min(all.find(mark, begin + 1), all.size());
        out.push_back({all.substr(begin, end - begin), piece.at_start && begin == 0});
        begin = end;
      }
    }
    *pieces = std::move(out);
    return absl::OkStatus();
  }

 private:
  MetaspaceSettings settings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeMetaspace(JsonObject* json) {
  auto settings = ReadMetaspace(json);
  if (!settings.ok()) return settings.status();
  return std::make_unique<Metaspace>(*std::move(settings));
}

}  // namespace rlhf::artifact
