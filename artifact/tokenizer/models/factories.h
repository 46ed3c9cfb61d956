// One function for each file of this folder: reads the settings of its type. `type` has been read already.
#pragma once

#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "artifact/tokenizer/json_object.h"
#include "artifact/tokenizer/model.h"

namespace rlhf::artifact {

using Vocabulary = absl::flat_hash_map<std::string, int32_t>;
constexpr size_t kMaxTokenBytes = 2048;   // of tokens that are searched for at every place of a text
constexpr int32_t kMaxTokenId = 1 << 22;  // far above the largest vocabularies; bounds what a damaged id can cost

absl::StatusOr<std::unique_ptr<TokenModel>> MakeBpe(JsonObject* json);        // bpe_reader.cc
absl::StatusOr<std::unique_ptr<TokenModel>> MakeUnigram(JsonObject* json);    // unigram.cc
absl::StatusOr<std::unique_ptr<TokenModel>> MakeWordPiece(JsonObject* json);  // wordpiece.cc

// The object of token to id under the key "vocab".
absl::StatusOr<Vocabulary> ReadVocabulary(JsonObject* json);
// The text of a byte's token: "<0x0A>".
std::string ByteToken(unsigned char byte);

}  // namespace rlhf::artifact
