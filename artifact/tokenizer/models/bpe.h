// Byte-pair encoding (Sennrich et al. 2016). Thread-safe: const after construction.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "artifact/tokenizer/models/factories.h"

namespace rlhf::artifact {

struct BpeOptions {
  bool byte_fallback = false;             // unknown characters become <0xNN> tokens
  bool ignore_merges = false;             // a word that is a token is taken whole
  bool fuse_unk = false;                  // neighbouring unknown characters become one unknown token
  std::string unk_token;                  // empty: none; then what is unknown leaves no id, as in the library
  std::string continuing_subword_prefix;  // before every character of a word but the first
  std::string end_of_word_suffix;         // after a word's last character
};

class BpeModel : public TokenModel {
 public:
  using Merges = std::vector<std::pair<std::string, std::string>>;
  // merges: pairs in order of rank. InvalidArgument for a merge whose parts or result are not in the vocabulary.
  static absl::StatusOr<std::unique_ptr<BpeModel>> Make(Vocabulary vocabulary, const Merges& merges,
                                                        const BpeOptions& options);

  std::optional<int32_t> TokenToId(absl::string_view token) const override;
  void ForEachToken(const std::function<void(const std::string&, int32_t)>& visit) const override;
  bool CanTakeBytes() const override { return true; }
  void TakeBytes() override { takes_bytes_ = true; }

 protected:
  absl::Status EncodeWord(absl::string_view word, std::vector<int32_t>* ids) const override;
  size_t FirstPart(absl::string_view word) const override;

 private:
  struct Merge {
    int32_t rank, id;
  };
  absl::Status Symbols(absl::string_view word, std::vector<int32_t>* symbols) const;
  std::optional<int32_t> CharacterId(absl::string_view character, bool first, bool last) const;
  void MergeFew(std::vector<int32_t>* symbols) const;
  void MergeMany(std::vector<int32_t>* symbols) const;
  void NoteNeighbours(absl::string_view token);
  bool MayJoin(char32_t left, char32_t right) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  Vocabulary vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id << 32 | right id)
  BpeOptions options_;
  std::vector<int32_t> byte_ids_;       // by byte; -1: none
  std::vector<int32_t> character_ids_;  // by code point below 0x10000; -1: none
  // Neighbouring characters inside tokens that merges make: elsewhere a word may be cut.
  std::bitset<128 * 128> ascii_neighbours_;
  absl::flat_hash_set<uint64_t> neighbours_;
  bool takes_bytes_ = false;
};

}  // namespace rlhf::artifact
