// WordPiece: the longest known beginning, again and again; a word with an unknown part is unknown as a whole.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/byte_trie.h"
#include "artifact/tokenizer/models/factories.h"

namespace rlhf::artifact {
namespace {

class WordPieceModel : public TokenModel {
 public:
  WordPieceModel(Vocabulary vocabulary, const std::string& prefix, std::string unk_token, int64_t max_characters)
      : vocabulary_(std::move(vocabulary)), unk_token_(std::move(unk_token)), max_characters_(max_characters) {
    std::vector<std::pair<std::string, int32_t>> first, later;
    for (const auto& [token, id] : vocabulary_) {
      first.emplace_back(token, id);
      if (absl::StartsWith(token, prefix)) later.emplace_back(token.substr(prefix.size()), id);
    }
    first_ = ByteTrie(std::move(first));
    later_ = ByteTrie(std::move(later));
  }

  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    const auto found = vocabulary_.find(token);
    return found == vocabulary_.end() ? std::nullopt : std::optional<int32_t>(found->second);
  }
  void ForEachToken(const std::function<void(const std::string&, int32_t)>& visit) const override {
    for (const auto& [token, id] : vocabulary_) visit(token, id);
  }

 protected:
  absl::Status EncodeWord(absl::string_view word, std::vector<int32_t>* ids) const override {
    int64_t characters = 0;
    for (const char c : word) characters += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    const size_t before = ids->size();
    if (characters <= max_characters_) {
      const absl::string_view whole = word;
      while (!word.empty()) {
        int32_t id = -1;
        const size_t length = (word.size() == whole.size() ? first_ : later_).Longest(word, &id);
        if (length == 0) break;
        ids->push_back(id);
        word.remove_prefix(length);
      }
      if (word.empty()) return absl::OkStatus();
    }
    ids->resize(before);
    const auto unk = TokenToId(unk_token_);
    if (!unk) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token \"", unk_token_, "\" is not in model.vocab, and the text needs it"));
    }
    ids->push_back(*unk);
    return absl::OkStatus();
  }

 private:
  Vocabulary vocabulary_;
  std::string unk_token_;
  int64_t max_characters_;
  ByteTrie first_, later_;  // a word's beginning, and what follows
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenModel>> MakeWordPiece(JsonObject* json) {
  auto vocabulary = ReadVocabulary(json);
  if (!vocabulary.ok()) return vocabulary.status();
  for (const auto& [token, id] : *vocabulary) {
    if (token.size() > kMaxTokenBytes)
      return json->Bad(
          "vocab", absl::StrCat("expected tokens of at most ", kMaxTokenBytes, " bytes, found one of ", token.size()));
  }
  return std::make_unique<WordPieceModel>(*std::move(vocabulary), json->Text("continuing_subword_prefix", "##"),
                                          json->Text("unk_token", "[UNK]"),
                                          json->Integer("max_input_chars_per_word", 0, INT32_MAX, 100));
}

}  // namespace rlhf::artifact
