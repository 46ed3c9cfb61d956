#include "artifact/same_tokens.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <system_error>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/printable.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;
using Tokens = std::map<int64_t, std::string>;  // by id

constexpr uintmax_t kLargest = 64 << 20;  // bytes, as Tokenizer::Load has it

// Of what somebody uploaded, before it is read.
absl::StatusOr<std::string> ReadBounded(const std::string& path) {
  std::error_code error;
  if (const auto size = std::filesystem::file_size(path, error); !error && size > kLargest)
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected at most ", kLargest, " bytes, found ", size));
  return ReadFile(path);
}

// An object of ids by tokens, or Unigram's list of tokens with their scores; then the added ones.
absl::StatusOr<Tokens> TokensOf(const std::string& text, const std::string& path) {
  const auto unreadable = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a tokenizer.json with ", what));
  };
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object() || !json["model"].contains("vocab"))
    return unreadable("model.vocab");
  Tokens tokens;
  const Json& vocab = json["model"]["vocab"];
  if (vocab.is_object()) {
    for (const auto& [token, id] : vocab.items()) {
      if (!id.is_number_integer()) return unreadable("ids in model.vocab");
      tokens[id.get<int64_t>()] = token;
    }
  } else {
    for (const Json& piece : vocab) {
      if (!piece.is_array() || piece.empty() || !piece[0].is_string()) return unreadable("pieces in model.vocab");
      tokens.emplace(static_cast<int64_t>(tokens.size()), piece[0].get<std::string>());
    }
  }
  const auto added_tokens = json.find("added_tokens");
  if (added_tokens == json.end()) return tokens;
  for (const Json& added : *added_tokens) {
    if (!added.is_object() || !added.contains("id") || !added["id"].is_number_integer() || !added.contains("content") ||
        !added["content"].is_string())
      return unreadable("an id and the content of each of added_tokens");
    tokens[added["id"].get<int64_t>()] = added["content"].get<std::string>();
  }
  return tokens;
}

}  // namespace

absl::Status CheckSameTokens(const std::string& model_dir, const std::string& other_dir) {
  const std::string path = model_dir + "/tokenizer.json", other_path = other_dir + "/tokenizer.json";
  const auto text = ReadBounded(path);
  if (!text.ok()) return text.status();
  const auto other_text = ReadBounded(other_path);
  if (!other_text.ok()) return other_text.status();
  if (*text == *other_text) return absl::OkStatus();
  const auto tokens = TokensOf(*text, path), others = TokensOf(*other_text, other_path);
  if (!tokens.ok()) return tokens.status();
  if (!others.ok()) return others.status();
  for (const auto& [id, token] : *tokens) {
    const auto other = others->find(id);
    if (other != others->end() && other->second == token) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", id, " is \"", Printable(token), "\" of one and ",
        other == others->end() ? "no token" : absl::StrCat("\"", Printable(other->second), "\""), " of the other"));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
