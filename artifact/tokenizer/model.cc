#include "artifact/tokenizer/model.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/tokenizer/models/factories.h"

namespace rlhf::artifact {

absl::Status TokenModel::EncodeCached(absl::string_view word, WordCache* cache, std::vector<int32_t>* ids) const {
  if (word.size() > WordCache::kWordBytes) return EncodeWord(word, ids);
  const uint64_t hash = WordCache::Hash(word);
  absl::Span<const int32_t> known;
  if (cache->Find(word, hash, &known)) {
    ids->insert(ids->end(), known.begin(), known.end());
    return absl::OkStatus();
  }
  const size_t before = ids->size();
  if (absl::Status status = EncodeWord(word, ids); !status.ok()) return status;
  cache->Insert(word, hash, absl::MakeConstSpan(*ids).subspan(before));
  return absl::OkStatus();
}

absl::Status TokenModel::Encode(absl::Span<const Piece> pieces, std::vector<int32_t>* ids) const {
  std::unique_ptr<WordCache> cache = caches_.Take();
  absl::Status status;
  for (const Piece& piece : pieces) {
    absl::string_view rest = piece.text;
    while (!rest.empty() && status.ok()) {
      const absl::string_view part =
          rest.substr(0, rest.size() > WordCache::kWordBytes ? FirstPart(rest) : rest.size());
      status = EncodeCached(part, cache.get(), ids);
      rest.remove_prefix(part.size());
    }
    if (!status.ok()) break;
  }
  caches_.Give(std::move(cache));
  return status;
}

std::string ByteToken(unsigned char byte) {
  return absl::StrFormat("<0x%02X>", byte);
}

absl::StatusOr<Vocabulary> ReadVocabulary(JsonObject* json) {
  const nlohmann::json& vocab = json->Get("vocab");
  if (!vocab.is_object())
    return json->Bad("vocab", absl::StrCat("expected an object of token to id, found ", Describe(vocab)));
  Vocabulary out;
  out.reserve(vocab.size());
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxTokenId) {
      return json->Bad("vocab", absl::StrCat("\"", token.substr(0, 80), "\": expected an id from 0 to ", kMaxTokenId,
                                             ", found ", Describe(id)));
    }
    out[token] = id.get<int32_t>();
  }
  return out;
}

absl::StatusOr<std::unique_ptr<TokenModel>> MakeTokenModel(const nlohmann::json& json, const std::string& path) {
  JsonObject object(json, path);
  // Old files leave the type out of a BPE with merges.
  const std::string type = object.Text("type", object.Has("merges") ? "BPE" : "");
  auto made =
      type == "BPE"       ? MakeBpe(&object)
      : type == "Unigram" ? MakeUnigram(&object)
      : type == "WordPiece"
          ? MakeWordPiece(&object)
          : object.Bad("type", absl::StrCat("found \"", type.substr(0, 40), "\"; supported: BPE, Unigram, WordPiece"));
  if (!made.ok()) return made.status();
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  return made;
}

}  // namespace rlhf::artifact
