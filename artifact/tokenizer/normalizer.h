// What is done to a text before it is split: tokenizer.json's `normalizer`. Thread-safe: const after construction.
//
// A family of strategies, one file each in normalizers/. Their behaviour is the `tokenizers` library's.
#pragma once

#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

struct NormalizedText {
  std::string text;  // valid UTF-8
  // The first character comes from the beginning of what was given: nothing before it was taken away.
  bool keeps_start = true;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // ResourceExhausted where a regular expression costs too much.
  virtual absl::Status Normalize(NormalizedText* text) const = 0;
};

// From JSON; null gives a null pointer. InvalidArgument with the path for what is not supported.
absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(const nlohmann::json& json, const std::string& path,
                                                           int depth = 0);

}  // namespace rlhf::artifact
