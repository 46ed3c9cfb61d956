// Reads one JSON object key by key; every error names the file and the path, and a key that nobody asked for is an
// error: no setting is ever ignored. Not thread-safe; the JSON must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rlhf::artifact {

class JsonObject {
 public:
  // path: "FILE: a.b[2]".
  JsonObject(const nlohmann::json& json, std::string path);

  const std::string& path() const { return path_; }
  std::string PathOf(absl::string_view key) const;
  absl::Status Bad(absl::string_view key, absl::string_view problem) const;

  // The value of a key; null when it is absent. Marks the key as known.
  const nlohmann::json& Get(const char* key);
  bool Has(const char* key) { return !Get(key).is_null(); }
  // Typed values; the first wrong one is kept for Finish. Null counts as absent; absent without a fallback is wrong.
  std::string Text(const char* key, const std::optional<std::string>& fallback = std::nullopt);
  bool Flag(const char* key, std::optional<bool> fallback = std::nullopt);
  int64_t Integer(const char* key, int64_t low, int64_t high, std::optional<int64_t> fallback = std::nullopt);
  // Exactly one character.
  std::string Character(const char* key, const std::optional<std::string>& fallback = std::nullopt);
  void Ignore(std::initializer_list<const char*> keys);  // known, of no effect
  void Fail(absl::string_view key, absl::string_view problem);

  // The first error; or InvalidArgument for an unknown key.
  absl::Status Finish() const;

 private:
  const nlohmann::json& json_;
  std::string path_;
  std::vector<std::string> known_;
  absl::Status status_;
};

// A short description of a value for an error: its text when it is a scalar, its type otherwise.
std::string Describe(const nlohmann::json& json);

}  // namespace rlhf::artifact
