// Finds a model's chat template and the special tokens that it may name.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/chat/chat_template.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

// The template in tokenizer_config.json: a text, or a list of {"name", "template"}.
std::optional<std::string> TemplateIn(const Json& config) {
  if (!config.contains("chat_template")) return std::nullopt;
  const Json& value = config["chat_template"];
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return std::nullopt;
  for (const Json& entry : value) {
    // Not value(), which copies: what nests deeply ends the process.
    if (!entry.is_object() || !entry.contains("name") || entry["name"] != "default") continue;
    if (entry.contains("template") && entry["template"].is_string()) return entry["template"].get<std::string>();
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& model_dir) {
  const std::string config_path = model_dir + "/tokenizer_config.json", own_path = model_dir + "/chat_template.jinja";
  Json config = Json::object();
  if (auto text = ReadFile(config_path); text.ok()) {
    config = Json::parse(*text, nullptr, false);
    if (!config.is_object())
      return absl::InvalidArgumentError(absl::StrCat(config_path, ": expected a JSON object; is the file damaged?"));
  }
  std::map<std::string, std::string> variables;
  for (const char* name : kSpecialTokens) {
    if (!config.contains(name)) continue;
    const Json& token = config[name];
    const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
    if (text.is_string()) variables[name] = text.get<std::string>();
  }
  if (auto own = ReadFile(own_path); own.ok()) return Parse(*own, own_path, std::move(variables));
  if (const auto found = TemplateIn(config))
    return Parse(*found, config_path + ": chat_template", std::move(variables));
  return absl::NotFoundError(absl::StrCat(model_dir,
                                          ": expected a chat template in chat_template.jinja or "
                                          "tokenizer_config.json, found none; give `prompt` instead of `messages`"));
}

}  // namespace rlhf::artifact
