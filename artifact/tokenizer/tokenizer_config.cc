// What tokenizer_config.json says about the tokenizer itself, in words of tokenizer.json.
#include <map>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pipeline.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

constexpr const char* kFlags[] = {"single_word", "lstrip", "rstrip", "normalized"};

// transformers adds the tokens that are listed here again where their flags differ: they count, not tokenizer.json's.
absl::Status ApplyAddedTokens(const std::string& path, const Json& listed, Json* tokenizer) {
  if (listed.is_null()) return absl::OkStatus();
  if (!listed.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": added_tokens_decoder: expected an object"));
  const auto found = tokenizer->find("added_tokens");
  std::map<std::string, Json*> known;
  if (found != tokenizer->end() && found->is_array()) {
    for (Json& token : *found) {
      if (token.is_object() && token.contains("content") && token["content"].is_string())
        known[token["content"].get<std::string>()] = &token;
    }
  }
  for (const auto& [id, token] : listed.items()) {
    const auto problem = [&, &id = id](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": added_tokens_decoder: ", id.substr(0, 20), ": ", what));
    };
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string())
      return problem("expected an object with the token's content");
    const auto content = token["content"].get<std::string>();
    const auto same = known.find(content);
    if (same == known.end())
      return problem(absl::StrCat("\"", content.substr(0, 80), "\" is not among the added_tokens of tokenizer.json"));
    Json& ours = *same->second;
    if (!ours.contains("id") || !ours["id"].is_number_integer() || ours["id"].dump() != id)
      return problem(absl::StrCat("tokenizer.json has \"", content.substr(0, 80), "\" under another id"));
    const auto flag = [](const Json& of, const char* key, bool otherwise) {
      return of.contains(key) && of[key].is_boolean() ? of[key].get<bool>() : otherwise;
    };
    // Special is what either of the two says is.
    const bool special = flag(ours, "special", false) || flag(token, "special", false);
    ours["special"] = special;
    for (const char* key : kFlags) {
      const bool normalized = key == std::string("normalized");
      ours[key] = flag(token, key, normalized && !special);
    }
  }
  return absl::OkStatus();
}

// So is every token that has a name, whatever its flag.
void MarkNamed(const Json& config, Json* tokenizer) {
  const auto found = tokenizer->find("added_tokens");
  if (found == tokenizer->end() || !found->is_array()) return;
  std::set<std::string> named;
  const auto add = [&named](const Json& token) {
    const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
    if (text.is_string()) named.insert(text.get<std::string>());
  };
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    if (config.contains(key)) add(config[key]);
  }
  // The older and the newer name, of a list or of tokens by their names. A list marks nothing for transformers 5, but
  // it did for 4, and what is called special is not to be written by a text.
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    if (!config.contains(key) || !config[key].is_structured()) continue;
    for (const Json& token : config[key]) add(token);
  }
  for (Json& token : *found) {
    if (token.is_object() && token.contains("content") && token["content"].is_string() &&
        named.contains(token["content"].get<std::string>()))
      token["special"] = true;
  }
}

bool Prepends(const Json& normalizer, int depth) {
  if (!normalizer.is_object() || depth > 16) return false;
  const auto type = normalizer.find("type"), list = normalizer.find("normalizers");
  if (type != normalizer.end() && *type == "Prepend") return true;
  if (list == normalizer.end() || !list->is_array()) return false;
  for (const Json& step : *list) {
    if (Prepends(step, depth + 1)) return true;
  }
  return false;
}

}  // namespace

absl::Status ApplyTokenizerConfig(const std::string& model_dir, Json* tokenizer) {
  const std::string path = model_dir + "/tokenizer_config.json";
  auto text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  const Json config = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !tokenizer->is_object()) return absl::OkStatus();  // somebody else's error
  if (config.contains("added_tokens_decoder")) {
    if (absl::Status s = ApplyAddedTokens(path, config["added_tokens_decoder"], tokenizer); !s.ok()) return s;
  }
  MarkNamed(config, tokenizer);
  if (!config.contains("add_prefix_space") || !config["add_prefix_space"].is_boolean()) return absl::OkStatus();
  // Some versions of transformers let it rule over tokenizer.json, others do not.
  const bool said = config["add_prefix_space"].get<bool>();
  const Json none;
  const Json& pre = tokenizer->contains("pre_tokenizer") ? (*tokenizer)["pre_tokenizer"] : none;
  const Json& normalizer = tokenizer->contains("normalizer") ? (*tokenizer)["normalizer"] : none;
  const auto value = [&](const char* key) { return pre.is_object() && pre.contains(key) ? pre[key] : none; };
  const bool byte_level = value("type") == "ByteLevel" && value("add_prefix_space").is_boolean();
  const bool metaspace = value("type") == "Metaspace" && value("prepend_scheme").is_string();
  const bool does = byte_level ? value("add_prefix_space").get<bool>()
                               : (metaspace && value("prepend_scheme") != "never") || Prepends(normalizer, 0);
  if ((byte_level || metaspace || does) && does != said) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": add_prefix_space: expected ", does ? "true" : "false",
                                                   ", as tokenizer.json has it, found ", said ? "true" : "false"));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
