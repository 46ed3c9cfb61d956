// Splits a normalized text into the pieces that the model encodes: tokenizer.json's `pre_tokenizer`. Thread-safe: const
// after construction.
//
// A family of strategies, one file each in pre_tokenizers/. Their behaviour is the `tokenizers` library's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/pieces.h"

namespace rlhf::artifact {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Replaces each piece by what it splits into, in order, without empty ones. New texts go to the arena.
  // ResourceExhausted where a regular expression costs too much.
  virtual absl::Status Apply(std::vector<Piece>* pieces, TextArena* arena) const = 0;
  // Asks that the pieces stay plain bytes where they would become GPT-2's symbols, since the model does it. False: this
  // step does not end in such symbols.
  virtual bool LeaveBytes() { return false; }
};

// From JSON; null gives a null pointer. InvalidArgument with the path for what is not supported.
absl::StatusOr<std::unique_ptr<PreTokenizer>> MakePreTokenizer(const nlohmann::json& json, const std::string& path,
                                                               int depth = 0);

}  // namespace rlhf::artifact
