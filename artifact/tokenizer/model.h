// Pieces of text to token ids: tokenizer.json's `model`. Thread-safe: const after construction, but for caches of its
// own.
//
// A family of models, one file each in models/. Ids are those of the `tokenizers` library.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "artifact/tokenizer/pieces.h"
#include "artifact/tokenizer/word_cache.h"

namespace rlhf::artifact {

class TokenModel {
 public:
  virtual ~TokenModel() = default;

  // Appends the ids of the pieces, each encoded by itself. InvalidArgument for a text that the vocabulary cannot
  // express and that has no unknown token to stand for it.
  absl::Status Encode(absl::Span<const Piece> pieces, std::vector<int32_t>* ids) const;

  virtual std::optional<int32_t> TokenToId(absl::string_view token) const = 0;
  virtual void ForEachToken(const std::function<void(const std::string& token, int32_t id)>& visit) const = 0;
  // From now on pieces come as bytes, not as GPT-2's symbols for them. Only for a model that can.
  virtual bool CanTakeBytes() const { return false; }
  virtual void TakeBytes() {}

 protected:
  virtual absl::Status EncodeWord(absl::string_view word, std::vector<int32_t>* ids) const = 0;
  // Where a long word may be cut without changing its ids: the length of its first part.
  virtual size_t FirstPart(absl::string_view word) const { return word.size(); }

 private:
  absl::Status EncodeCached(absl::string_view word, WordCache* cache, std::vector<int32_t>* ids) const;
  mutable WordCachePool caches_;
};

// From JSON. InvalidArgument with the path for what is not supported or inconsistent.
absl::StatusOr<std::unique_ptr<TokenModel>> MakeTokenModel(const nlohmann::json& json, const std::string& path);

}  // namespace rlhf::artifact
