// ByteLevel: GPT-2's words, then every byte as a printable character.
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/pre_tokenizers/factories.h"

namespace rlhf::artifact {
namespace {

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex, Regex words)
      : add_prefix_space_(add_prefix_space), use_regex_(use_regex), words_(std::move(words)) {}

  bool LeaveBytes() override {
    leave_bytes_ = true;
    return true;
  }

  absl::Status Apply(std::vector<Piece>* pieces, TextArena* arena) const override {
    std::vector<Piece> out;
    for (Piece piece : *pieces) {
      if (add_prefix_space_ && !piece.text.empty() && piece.text[0] != ' ') {
        const auto text = arena->New(piece.text.size() + 1);
        if (!text.ok()) return text.status();
        absl::StrAppend(*text, " ", piece.text);
        piece.text = **text;
      }
      if (!use_regex_) {
        out.push_back(piece);
        continue;
      }
      size_t done = 0;
      const auto add = [&](size_t begin, size_t end) {
        if (begin < end) out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
      };
      absl::Status status = words_.Each(piece.text, [&](size_t begin, size_t end) {
        add(done, begin);
        add(begin, end);
        done = end;
      });
      if (!status.ok()) return status;
      add(done, piece.text.size());
    }
    *pieces = std::move(out);
    return leave_bytes_ ? absl::OkStatus() : ToSymbols(pieces, arena);
  }

 private:
  static absl::Status ToSymbols(std::vector<Piece>* pieces, TextArena* arena) {
    size_t bytes = 0;
    for (const Piece& piece : *pieces) bytes += piece.text.size();
    const auto made = arena->New(2 * bytes);  // pieces point into it: it must not move
    if (!made.ok()) return made.status();
    std::string* all = *made;
    for (Piece& piece : *pieces) {
      const size_t begin = all->size();
      AppendByteSymbols(piece.text, all);
      piece.text = absl::string_view(*all).substr(begin);
    }
    return absl::OkStatus();
  }

  bool add_prefix_space_, use_regex_, leave_bytes_ = false;
  Regex words_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeByteLevel(JsonObject* json) {
  json->Ignore({"trim_offsets"});  // only moves offsets, which we do not report
  auto words = Regex::Compile(kByteLevelPattern);
  if (!words.ok()) return words.status();
  return std::make_unique<ByteLevel>(json->Flag("add_prefix_space", true), json->Flag("use_regex", true),
                                     *std::move(words));
}

}  // namespace rlhf::artifact
