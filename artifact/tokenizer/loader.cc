// Reads tokenizer.json into its parts.
#include <algorithm>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer.h"
#include "artifact/tokenizer/json_object.h"
#include "artifact/tokenizer/models/factories.h"
#include "artifact/tokenizer/pipeline.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = 64 << 20;  // the largest real ones have half

void Name(int32_t id, const std::string& token, PipelineTokenizer::Parts* parts) {
  if (static_cast<size_t>(id) >= parts->tokens.size()) {
    parts->tokens.resize(id + 1);
    parts->special.resize(id + 1);
  }
  parts->tokens[id] = token;
}

absl::StatusOr<AddedToken> ReadAddedToken(const Json& json, const std::string& path, const TokenModel& model) {
  JsonObject object(json, path);
  AddedToken token;
  token.content = object.Text("content");
  token.id = static_cast<int32_t>(object.Integer("id", 0, kMaxTokenId));
  token.special = object.Flag("special", false);
  token.single_word = object.Flag("single_word", false);
  token.lstrip = object.Flag("lstrip", false);
  token.rstrip = object.Flag("rstrip", false);
  token.normalized = object.Flag("normalized", !token.special);
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  if (token.content.empty()) return object.Bad("content", "expected a text, found an empty one");
  if (token.content.size() > kMaxTokenBytes) {
    return object.Bad("content",
                      absl::StrCat("expected at most ", kMaxTokenBytes, " bytes, found ", token.content.size()));
  }
  if (const auto known = model.TokenToId(token.content); known && *known != token.id) {
    return object.Bad("id", absl::StrCat("found ", token.id, ", but model.vocab has \"", token.content.substr(0, 80),
                                         "\" as ", *known, "; expected the same id"));
  }
  return token;
}

// A normalized token is searched for as what the normalizer makes of it.
absl::Status AddTokens(const Json& json, const std::string& path, PipelineTokenizer::Parts* parts) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_array())
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected an array, found ", Describe(json)));
  std::vector<AddedToken> raw, normalized;
  std::vector<std::string> raw_keys, normalized_keys;
  for (size_t i = 0; i < json.size(); ++i) {
    auto token = ReadAddedToken(json[i], absl::StrCat(path, "[", i, "]"), *parts->model);
    if (!token.ok()) return token.status();
    Name(token->id, token->content, parts);
    if (token->special) {
      parts->special[token->id] = true;
      parts->special_texts.push_back(token->content);
    }
    parts->added_ids[token->content] = token->id;
    if (!token->normalized) {
      raw_keys.push_back(token->content);
      raw.push_back(*std::move(token));
      continue;
    }
    NormalizedText key(token->content);
    if (parts->normalizer != nullptr) {
      if (absl::Status status = parts->normalizer->Normalize(&key); !status.ok()) return status;
    }
    normalized_keys.push_back(key.text);
    normalized.push_back(*std::move(token));
  }
  // Of tokens that look alike the special one counts.
  const auto special_first = [](std::vector<AddedToken>* tokens, std::vector<std::string>* keys) {
    std::vector<size_t> order(tokens->size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return (*tokens)[a].special && !(*tokens)[b].special; });
    std::vector<AddedToken> sorted;
    std::vector<std::string> sorted_keys;
    for (const size_t i : order) {
      sorted.push_back((*tokens)[i]);
      sorted_keys.push_back((*keys)[i]);
    }
    return AddedTokenFinder(std::move(sorted), sorted_keys);
  };
  parts->raw_tokens = special_first(&raw, &raw_keys);
  parts->normalized_tokens = special_first(&normalized, &normalized_keys);
  return absl::OkStatus();
}

absl::StatusOr<PipelineTokenizer::Parts> ReadParts(const Json& json, const std::string& file) {
  JsonObject object(json, absl::StrCat(file, ": "));
  // Truncation and padding are the caller's: `transformers` sets both anew in every call, too.
  object.Ignore({"version", "truncation", "padding"});
  PipelineTokenizer::Parts parts;
  auto model = MakeTokenModel(object.Get("model"), object.PathOf("model"));
  if (!model.ok()) return model.status();
  parts.model = *std::move(model);
  parts.model->ForEachToken([&](const std::string& token, int32_t id) { Name(id, token, &parts); });
  auto normalizer = MakeNormalizer(object.Get("normalizer"), object.PathOf("normalizer"));
  if (!normalizer.ok()) return normalizer.status();
  parts.normalizer = *std::move(normalizer);
  if (absl::Status s = AddTokens(object.Get("added_tokens"), object.PathOf("added_tokens"), &parts); !s.ok()) return s;
  auto pre_tokenizer = MakePreTokenizer(object.Get("pre_tokenizer"), object.PathOf("pre_tokenizer"));
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  parts.pre_tokenizer = *std::move(pre_tokenizer);
  // Words in plain bytes are shorter to look up than in symbols: the model maps them only when it meets a new one.
  if (parts.pre_tokenizer != nullptr && parts.model->CanTakeBytes() && parts.pre_tokenizer->LeaveBytes())
    parts.model->TakeBytes();
  auto post_processor = MakePostProcessor(object.Get("post_processor"), object.PathOf("post_processor"));
  if (!post_processor.ok()) return post_processor.status();
  parts.post_processor = *std::move(post_processor);
  auto decoder = MakeDecoder(object.Get("decoder"), object.PathOf("decoder"));
  if (!decoder.ok()) return decoder.status();
  parts.decoder = *std::move(decoder);
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  return parts;
}

absl::StatusOr<Json> Parsed(absl::string_view text, const std::string& name) {
  if (text.size() > kMaxFileBytes)
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected at most ", kMaxFileBytes, " bytes, found ", text.size()));
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected a JSON object; is the file damaged?"));
  return json;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(absl::string_view text, const std::string& name) {
  const auto json = Parsed(text, name);
  if (!json.ok()) return json.status();
  auto parts = ReadParts(*json, name);
  if (!parts.ok()) return parts.status();
  return std::make_unique<PipelineTokenizer>(*std::move(parts));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  auto json = Parsed(*text, path);
  if (!json.ok()) return json.status();
  if (absl::Status status = ApplyTokenizerConfig(model_dir, &*json); !status.ok()) return status;
  auto parts = ReadParts(*json, path);
  if (!parts.ok()) return parts.status();
  auto pipeline = std::make_unique<PipelineTokenizer>(*std::move(parts));
  auto special_ids = ReadSpecialIds(model_dir, *pipeline);
  if (!special_ids.ok()) return special_ids.status();
  pipeline->set_special_ids(*std::move(special_ids));
  pipeline->set_chat_template(ChatTemplate::Load(model_dir));
  return pipeline;
}

}  // namespace rlhf::artifact
