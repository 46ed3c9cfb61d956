#include "artifact/same_tokens.h"

#include <algorithm>
#include <cstdint>
#include <map>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/printable.h"
#include "common/status_util.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;
using Tokens = std::map<int64_t, std::string>;  // by id

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
  RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  RLHF_ASSIGN_OR_RETURN(const std::string other_text, ReadFile(other_path));
  if (text == other_text) return absl::OkStatus();
  RLHF_ASSIGN_OR_RETURN(const Tokens tokens, TokensOf(text, path));
  RLHF_ASSIGN_OR_RETURN(const Tokens others, TokensOf(other_text, other_path));
  const auto [one, other] = std::mismatch(tokens.begin(), tokens.end(), others.begin(), others.end());
  if (one == tokens.end() && other == others.end()) return absl::OkStatus();
  const auto token = [](const Tokens& of, int64_t id) {
    const auto found = of.find(id);
    return found == of.end() ? std::string("no token") : absl::StrCat("\"", Printable(found->second), "\"");
  };
  const int64_t id =
      std::min(one == tokens.end() ? other->first : one->first, other == others.end() ? one->first : other->first);
  return absl::InvalidArgumentError(
      absl::StrCat("token ", id, " is ", token(tokens, id), " of one and ", token(others, id), " of the other"));
}

}  // namespace rlhf::artifact
