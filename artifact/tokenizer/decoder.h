// Tokens back to text: tokenizer.json's `decoder`. Thread-safe: const after construction.
//
// A family of strategies, in decoders/. Their behaviour is the `tokenizers` library's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Changes the tokens in place, or makes one of several; the text is what they are one after another.
  // ResourceExhausted where a regular expression costs too much.
  virtual absl::Status Apply(std::vector<std::string>* tokens) const = 0;
};

// From JSON; null gives a null pointer (then tokens are joined by spaces). InvalidArgument with the path for what is
// not supported.
absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const nlohmann::json& json, const std::string& path,
                                                     int depth = 0);

}  // namespace rlhf::artifact
