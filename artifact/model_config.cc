#include "artifact/model_config.h"

#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

// Reads keys of one config and says where a bad one is.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  absl::Status Problem(absl::string_view key, absl::string_view problem) const {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": ", key, ": ", problem));
  }
  bool Has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  absl::Status Int(const char* key, int64_t* out, bool required, int64_t low = 1,
                   int64_t high = int64_t{1} << 40) const {
    if (!Has(key)) return required ? Problem(key, "expected a whole number, found nothing") : absl::OkStatus();
    if (!json_[key].is_number_integer())
      return Problem(key, absl::StrCat("expected a whole number, found ", json_[key].dump()));
    const auto value = json_[key].get<int64_t>();
    if (value < low || value > high)
      return Problem(key, absl::StrCat("expected ", low, " to ", high, ", found ", value));
    *out = value;
    return absl::OkStatus();
  }
  absl::Status Double(const char* key, double* out) const {
    if (!Has(key)) return absl::OkStatus();
    if (!json_[key].is_number()) return Problem(key, absl::StrCat("expected a number, found ", json_[key].dump()));
    *out = json_[key].get<double>();
    return absl::OkStatus();
  }
  absl::Status Bool(const char* key, bool* out) const {
    if (!Has(key)) return absl::OkStatus();
    if (!json_[key].is_boolean())
      return Problem(key, absl::StrCat("expected true or false, found ", json_[key].dump()));
    *out = json_[key].get<bool>();
    return absl::OkStatus();
  }
  absl::Status TokenId(const char* key, std::optional<int32_t>* out) const {
    if (!Has(key)) return absl::OkStatus();
    const Json& value = json_[key].is_array() && !json_[key].empty() ? json_[key][0] : json_[key];
    if (!value.is_number_integer()) return Problem(key, absl::StrCat("expected a token id, found ", json_[key].dump()));
    *out = value.get<int32_t>();
    return absl::OkStatus();
  }
  // A setting that changes the numbers and is implemented for some values only.
  absl::Status Only(const char* key, const std::vector<Json>& allowed) const {
    if (!Has(key) || std::find(allowed.begin(), allowed.end(), json_[key]) != allowed.end()) return absl::OkStatus();
    std::vector<std::string> names;
    for (const Json& value : allowed) names.push_back(value.dump());
    return Problem(key, absl::StrCat("found ", json_[key].dump(), ", which is not supported; supported: ",
                                     names.empty() ? "null" : absl::StrJoin(names, ", ")));
  }
  const Json& json() const { return json_; }

 private:
  const Json& json_;
  std::string where_;
};

#define RETURN_IF_BAD(expr) \
  if (absl::Status s = (expr); !s.ok()) return s

absl::Status ReadRope(const Reader& reader, ModelConfig* config) {
  RETURN_IF_BAD(reader.Double("rope_theta", &config->rope_theta));
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!reader.Has(key)) continue;
    const Json& rope = reader.json()[key];
    if (!rope.is_object()) return reader.Problem(key, absl::StrCat("expected an object, found ", rope.dump()));
    const std::string type = rope.value("rope_type", rope.value("type", std::string("default")));
    if (type != "default")
      return reader.Problem(
          key, absl::StrCat("found rope_type \"", type, "\", which is not supported; supported: \"default\""));
    if (rope.contains("rope_theta")) {
      if (!rope["rope_theta"].is_number()) return reader.Problem(absl::StrCat(key, ".rope_theta"), "expected a number");
      config->rope_theta = rope["rope_theta"].get<double>();
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLlama(const Reader& reader, ModelConfig* config) {
  config->family = Family::kLlama;
  config->norm = Norm::kRms;
  config->activation = Activation::kSilu;
  config->gated_mlp = true;
  config->norm_eps = 1e-6;
  RETURN_IF_BAD(reader.Int("hidden_size", &config->hidden_size, true));
  RETURN_IF_BAD(reader.Int("intermediate_size", &config->intermediate_size, true));
  RETURN_IF_BAD(reader.Int("num_hidden_layers", &config->num_layers, true, 1, 10000));
  RETURN_IF_BAD(reader.Int("num_attention_heads", &config->num_heads, true, 1, 100000));
  config->num_kv_heads = config->num_heads;
  RETURN_IF_BAD(reader.Int("num_key_value_heads", &config->num_kv_heads, false, 1, 100000));
  config->head_dim = config->hidden_size / config->num_heads;
  RETURN_IF_BAD(reader.Int("head_dim", &config->head_dim, false, 1, 65536));
  config->max_position_embeddings = 2048;
  RETURN_IF_BAD(reader.Int("max_position_embeddings", &config->max_position_embeddings, false));
  RETURN_IF_BAD(reader.Double("rms_norm_eps", &config->norm_eps));
  RETURN_IF_BAD(reader.Bool("attention_bias", &config->attention_bias));
  RETURN_IF_BAD(reader.Bool("mlp_bias", &config->mlp_bias));
  RETURN_IF_BAD(reader.Only("hidden_act", {"silu"}));
  RETURN_IF_BAD(reader.Only("sliding_window", {}));
  RETURN_IF_BAD(reader.Only("partial_rotary_factor", {1.0}));
  RETURN_IF_BAD(ReadRope(reader, config));
  if (config->head_dim % 2 != 0)
    return reader.Problem("head_dim", "expected an even number: rotary positions turn pairs");
  return absl::OkStatus();
}

absl::Status ReadGpt2(const Reader& reader, ModelConfig* config) {
  config->family = Family::kGpt2;
  config->norm = Norm::kLayer;
  config->gated_mlp = false;
  config->rope_theta = 0;
  config->attention_bias = config->mlp_bias = true;
  config->tie_word_embeddings = true;
  RETURN_IF_BAD(reader.Int("n_embd", &config->hidden_size, true));
  config->intermediate_size = 4 * config->hidden_size;
  RETURN_IF_BAD(reader.Int("n_inner", &config->intermediate_size, false));
  RETURN_IF_BAD(reader.Int("n_layer", &config->num_layers, true, 1, 10000));
  RETURN_IF_BAD(reader.Int("n_head", &config->num_heads, true, 1, 100000));
  config->num_kv_heads = config->num_heads;
  config->head_dim = config->hidden_size / config->num_heads;
  config->max_position_embeddings = 1024;
  RETURN_IF_BAD(reader.Int("n_positions", &config->max_position_embeddings, false));
  RETURN_IF_BAD(reader.Double("layer_norm_epsilon", &config->norm_eps));
  RETURN_IF_BAD(reader.Only("activation_function", {"gelu_new", "gelu"}));
  config->activation = reader.json().value("activation_function", std::string("gelu_new")) == "gelu"
                           ? Activation::kGelu
                           : Activation::kGeluNew;
  RETURN_IF_BAD(reader.Only("scale_attn_weights", {true}));
  RETURN_IF_BAD(reader.Only("scale_attn_by_inverse_layer_idx", {false}));
  RETURN_IF_BAD(reader.Only("add_cross_attention", {false}));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& where) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(where, ": expected a JSON object"));
  const Reader reader(json, where);
  ModelConfig config;
  const std::string type =
      json.contains("model_type") && json["model_type"].is_string() ? json["model_type"].get<std::string>() : "";
  if (type == "llama") {
    RETURN_IF_BAD(ReadLlama(reader, &config));
  } else if (type == "gpt2") {
    RETURN_IF_BAD(ReadGpt2(reader, &config));
  } else {
    return reader.Problem("model_type", absl::StrCat("found \"", type, "\"; supported: \"llama\", \"gpt2\""));
  }
  const bool llama = config.family == Family::kLlama;
  config.architecture = llama ? "LlamaForCausalLM" : "GPT2LMHeadModel";
  if (json.contains("architectures") && json["architectures"].is_array() && !json["architectures"].empty() &&
      json["architectures"][0].is_string()) {
    config.architecture = json["architectures"][0].get<std::string>();
  }
  const std::string classifier = llama ? "LlamaForSequenceClassification" : "GPT2ForSequenceClassification";
  if (config.architecture == classifier) {
    config.num_labels =
        json.contains("id2label") && json["id2label"].is_object() ? static_cast<int>(json["id2label"].size()) : 1;
    if (json.contains("num_labels") && json["num_labels"].is_number_integer())
      config.num_labels = json["num_labels"].get<int>();
  } else if (config.architecture != (llama ? "LlamaForCausalLM" : "GPT2LMHeadModel")) {
    return reader.Problem("architectures",
                          absl::StrCat("found \"", config.architecture, "\"; supported: ",
                                       llama ? "LlamaForCausalLM" : "GPT2LMHeadModel", " and ", classifier));
  }
  RETURN_IF_BAD(reader.Int("vocab_size", &config.vocab_size, true, 1, 1 << 28));
  RETURN_IF_BAD(reader.Bool("tie_word_embeddings", &config.tie_word_embeddings));
  RETURN_IF_BAD(reader.TokenId("bos_token_id", &config.bos_token_id));
  RETURN_IF_BAD(reader.TokenId("eos_token_id", &config.eos_token_id));
  RETURN_IF_BAD(reader.TokenId("pad_token_id", &config.pad_token_id));
  for (const char* key : {"torch_dtype", "dtype"}) {
    RETURN_IF_BAD(reader.Only(key, {"float32", "bfloat16", "float16"}));
    if (reader.Has(key)) config.dtype = json[key].get<std::string>();
  }
  RETURN_IF_BAD(reader.Only("quantization_config", {}));
  if (config.hidden_size % config.num_heads != 0 && !reader.Has("head_dim")) {
    return reader.Problem("hidden_size", absl::StrCat("expected a multiple of the ", config.num_heads, " heads, found ",
                                                      config.hidden_size));
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return reader.Problem("num_key_value_heads", absl::StrCat("expected a divisor of the ", config.num_heads,
                                                              " heads, found ", config.num_kv_heads));
  }
  return config;
}

#undef RETURN_IF_BAD

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseModelConfig(*text, path);
}

std::string ModelConfigToJson(const ModelConfig& config) {
  nlohmann::ordered_json json;
  json["architectures"] = {config.architecture};
  if (config.family == Family::kLlama) {
    json["model_type"] = "llama";
    json["hidden_size"] = config.hidden_size;
    json["intermediate_size"] = config.intermediate_size;
    json["num_hidden_layers"] = config.num_layers;
    json["num_attention_heads"] = config.num_heads;
    json["num_key_value_heads"] = config.num_kv_heads;
    json["head_dim"] = config.head_dim;
    json["max_position_embeddings"] = config.max_position_embeddings;
    json["rms_norm_eps"] = config.norm_eps;
    json["rope_theta"] = config.rope_theta;
    json["hidden_act"] = "silu";
    json["attention_bias"] = config.attention_bias;
    json["mlp_bias"] = config.mlp_bias;
    json["attention_dropout"] = 0.0;
  } else {
    json["model_type"] = "gpt2";
    json["n_embd"] = config.hidden_size;
    json["n_inner"] = config.intermediate_size;
    json["n_layer"] = config.num_layers;
    json["n_head"] = config.num_heads;
    json["n_positions"] = config.max_position_embeddings;
    json["n_ctx"] = config.max_position_embeddings;
    json["layer_norm_epsilon"] = config.norm_eps;
    json["activation_function"] = config.activation == Activation::kGelu ? "gelu" : "gelu_new";
    json["attn_pdrop"] = json["embd_pdrop"] = json["resid_pdrop"] = 0.0;
  }
  json["vocab_size"] = config.vocab_size;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["bos_token_id"] = config.bos_token_id ? nlohmann::ordered_json(*config.bos_token_id) : nullptr;
  json["eos_token_id"] = config.eos_token_id ? nlohmann::ordered_json(*config.eos_token_id) : nullptr;
  json["pad_token_id"] = config.pad_token_id ? nlohmann::ordered_json(*config.pad_token_id) : nullptr;
  if (config.num_labels > 0) {
    nlohmann::ordered_json id2label, label2id;
    for (int i = 0; i < config.num_labels; ++i) {
      id2label[std::to_string(i)] = absl::StrCat("LABEL_", i);
      label2id[absl::StrCat("LABEL_", i)] = i;
    }
    json["id2label"] = id2label;
    json["label2id"] = label2id;
  }
  json["torch_dtype"] = config.dtype;
  return json.dump(2) + "\n";
}

int64_t NumParameters(const ModelConfig& c) {
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  int64_t layer =
      c.hidden_size * (q + 2 * kv) + q * c.hidden_size + (c.gated_mlp ? 3 : 2) * c.hidden_size * c.intermediate_size;
  const int64_t norm = c.hidden_size * (c.norm == Norm::kLayer ? 2 : 1);
  layer += 2 * norm;
  if (c.attention_bias) layer += q + 2 * kv + c.hidden_size;
  if (c.mlp_bias) layer += (c.gated_mlp ? 2 : 1) * c.intermediate_size + c.hidden_size;
  int64_t total = c.vocab_size * c.hidden_size + c.num_layers * layer + norm;
  if (c.rope_theta == 0) total += c.max_position_embeddings * c.hidden_size;
  if (c.num_labels > 0) {
    total += c.num_labels * c.hidden_size;
  } else if (!c.tie_word_embeddings) {
    total += c.vocab_size * c.hidden_size;
  }
  return total;
}

}  // namespace rlhf::artifact
