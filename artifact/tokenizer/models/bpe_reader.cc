// A BPE model's JSON: vocab, merges in both forms ("a b" and ["a", "b"]), options.
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/models/bpe.h"

namespace rlhf::artifact {
namespace {

absl::StatusOr<BpeModel::Merges> ReadMerges(JsonObject* json) {
  const nlohmann::json& list = json->Get("merges");
  if (!list.is_array()) return json->Bad("merges", absl::StrCat("expected an array, found ", Describe(list)));
  BpeModel::Merges out;
  out.reserve(list.size());
  for (const auto& merge : list) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      out.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return json->Bad(absl::StrCat("merges[", out.size(), "]"),
                       absl::StrCat("expected \"left right\" or [left, right], found ", Describe(merge)));
    }
    out.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenModel>> MakeBpe(JsonObject* json) {
  const nlohmann::json& dropout = json->Get("dropout");
  if (!dropout.is_null() && dropout != 0.0) {
    return json->Bad("dropout", absl::StrCat("found ", Describe(dropout),
                                             "; supported: null (dropout makes the same text different ids)"));
  }
  BpeOptions options;
  options.byte_fallback = json->Flag("byte_fallback", false);
  options.ignore_merges = json->Flag("ignore_merges", false);
  options.fuse_unk = json->Flag("fuse_unk", false);
  options.unk_token = json->Text("unk_token", "");
  options.continuing_subword_prefix = json->Text("continuing_subword_prefix", "");
  options.end_of_word_suffix = json->Text("end_of_word_suffix", "");
  auto vocabulary = ReadVocabulary(json);
  if (!vocabulary.ok()) return vocabulary.status();
  auto merges = ReadMerges(json);
  if (!merges.ok()) return merges.status();
  auto made = BpeModel::Make(*std::move(vocabulary), *merges, options);
  if (!made.ok()) return absl::InvalidArgumentError(absl::StrCat(json->path(), ".", made.status().message()));
  return std::unique_ptr<TokenModel>(*std::move(made));
}

}  // namespace rlhf::artifact
