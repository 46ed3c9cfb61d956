// Precompiled: SentencePiece's character map. Layout of the bytes: a little-endian uint32 size, that many bytes of a
// darts-clone double array of uint32 units, then the replacements, each ended by a zero byte.
// Source: google/sentencepiece builder.cc and s-yata/darts-clone's unit layout.
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "artifact/tokenizer/normalizers/factories.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

// The library looks a whole grapheme cluster up when it is shorter than this.
constexpr size_t kWholeGraphemeBytes = 6;

class Precompiled : public Normalizer {
 public:
  Precompiled(std::vector<uint32_t> units, std::string replacements)
      : units_(std::move(units)), replacements_(std::move(replacements)) {}

  absl::Status Normalize(NormalizedText* text) const override {
    std::string out;
    out.reserve(text->text.size());
    const absl::string_view all = text->text;
    for (size_t at = 0; at < all.size();) {
      // Between two ASCII characters a cluster always ends, but for CR LF.
      const bool alone = at + 1 < all.size() && static_cast<unsigned char>(all[at]) < 0x80 &&
                         static_cast<unsigned char>(all[at + 1]) < 0x80 && all[at] != '\r';
      const absl::string_view cluster = all.substr(at, alone ? 1 : GraphemeLength(all.substr(at)));
      AppendCluster(cluster, &out);
      if (out.size() > text->limit) break;
      at += cluster.size();
      if (out.empty()) text->keeps_start = false;
    }
    text->text = std::move(out);
    return text->CheckSize();
  }

 private:
  void AppendCluster(absl::string_view cluster, std::string* out) const {
    absl::string_view to;
    if (cluster.size() < kWholeGraphemeBytes && Lookup(cluster, &to)) {
      out->append(to.data(), to.size());
      return;
    }
    while (!cluster.empty()) {
      const absl::string_view character = cluster.substr(0, Utf8Length(cluster));
      const absl::string_view kept = Lookup(character, &to) ? to : character;
      out->append(kept.data(), kept.size());
      cluster.remove_prefix(character.size());
    }
  }

  // The replacement of the shortest key that the text begins with (sic: as the library does it).
  bool Lookup(absl::string_view text, absl::string_view* to) const {
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); };
    size_t node = offset(units_[0]);
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte == 0) return false;
      node ^= byte;
      if (node >= units_.size()) return false;
      const uint32_t unit = units_[node];
      if ((unit & ((1U << 31) | 0xFF)) != byte) return false;
      node ^= offset(unit);
      if (((unit >> 8) & 1) == 0) continue;
      if (node >= units_.size()) return false;
      const size_t begin = units_[node] & ((1U << 31) - 1);
      // Past the end, or inside a character: a damaged map.
      if (begin > replacements_.size() || (static_cast<unsigned char>(replacements_.c_str()[begin]) & 0xC0) == 0x80)
        return false;
      *to = absl::string_view(replacements_.c_str() + begin);
      return true;
    }
    return false;
  }

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> MakePrecompiled(JsonObject* json) {
  constexpr char kKey[] = "precompiled_charsmap";
  const std::string encoded = json->Text(kKey);
  std::string bytes;
  if (!absl::Base64Unescape(encoded, &bytes)) return json->Bad(kKey, "expected base64");
  uint32_t size = 0;
  if (bytes.size() >= sizeof(size)) std::memcpy(&size, bytes.data(), sizeof(size));
  if (size < sizeof(uint32_t) || size % sizeof(uint32_t) != 0 || size > bytes.size() - sizeof(size)) {
    return json->Bad(kKey, absl::StrCat("expected a size, a double array and replacements; found ", bytes.size(),
                                        " bytes and the size ", size));
  }
  std::vector<uint32_t> units(size / sizeof(uint32_t));
  std::memcpy(units.data(), bytes.data() + sizeof(size), size);
  std::string replacements = bytes.substr(sizeof(size) + size);
  if (!IsValidUtf8(replacements)) return json->Bad(kKey, "its replacements are not UTF-8");
  for (const absl::string_view replacement : absl::StrSplit(replacements, '\0')) {
    if (replacement.size() > kMaxContentBytes)
      return json->Bad(kKey, absl::StrCat("expected replacements of at most ", kMaxContentBytes, " bytes"));
  }
  return std::make_unique<Precompiled>(std::move(units), std::move(replacements));
}

}  // namespace rlhf::artifact
