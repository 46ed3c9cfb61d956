// What is done to a text before it is split: tokenizer.json's `normalizer`. Thread-safe: const after construction.
//
// A family of strategies, one file each in normalizers/. Their behaviour is the `tokenizers` library's.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

struct NormalizedText {
  explicit NormalizedText(std::string given) : text(std::move(given)), limit(4096 + 64 * text.size()) {}

  std::string text;  // valid UTF-8
  // The first character comes from the beginning of what was given: nothing before it was taken away.
  bool keeps_start = true;
  // What it may grow to, in bytes. Steps that double a text need no long list to fill a machine.
  size_t limit;

  // ResourceExhausted when the text has outgrown its limit.
  absl::Status CheckSize() const;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // ResourceExhausted where a regular expression costs too much, or the text grows beyond its limit.
  virtual absl::Status Normalize(NormalizedText* text) const = 0;
};

// From JSON; null gives a null pointer. InvalidArgument with the path for what is not supported.
absl::StatusOr<std::unique_ptr<Normalizer>> MakeNormalizer(const nlohmann::json& json, const std::string& path,
                                                           int depth = 0);

}  // namespace rlhf::artifact
