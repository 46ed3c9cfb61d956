#include "artifact/model_config.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/config/reader.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

constexpr double kMostParameters = 1e13;
constexpr int kDeepest = 16;          // a config.json nests three deep
constexpr size_t kLargest = 4 << 20;  // bytes
// Keys of one object, and labels: what keeps their order is searched from its beginning.
constexpr size_t kMostKeys = 1024;

// A hostile file may nest so deeply that the values' own recursion would not end well.
bool TooDeep(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted && text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted && (text[i] == '{' || text[i] == '[')) {
      if (++depth > kDeepest) return true;
    } else if (!quoted && (text[i] == '}' || text[i] == ']')) {
      --depth;
    }
  }
  return false;
}

// The path of an object in it that has more keys than any real file; empty: none.
std::string TooWide(const Json& json, const std::string& path) {
  if (json.is_object() && json.size() > kMostKeys) return path.empty() ? "it" : path;
  if (!json.is_structured()) return "";
  for (const auto& [key, value] : json.items()) {
    if (!value.is_structured()) continue;
    if (std::string found = TooWide(value, absl::StrCat(path, path.empty() ? "" : ".", key)); !found.empty())
      return found;
  }
  return "";
}

struct FamilyRow {
  Family family;
  const char* model_type;
  const char* causal;
  const char* classifier;
  absl::Status (*read)(ConfigReader&, ModelConfig*);
};
constexpr FamilyRow kFamilies[] = {
    {Family::kLlama, "llama", "LlamaForCausalLM", "LlamaForSequenceClassification", ReadLlama},
    {Family::kGpt2, "gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", ReadGpt2},
    {Family::kGptNeoX, "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification", ReadGptNeoX},
    {Family::kMistral, "mistral", "MistralForCausalLM", "MistralForSequenceClassification", ReadMistral},
    {Family::kQwen2, "qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", ReadQwen2},
    {Family::kQwen3, "qwen3", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification", ReadQwen3},
    {Family::kGemma2, "gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification", ReadGemma2},
    {Family::kGemma3, "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", ReadGemma3},
    {Family::kPhi3, "phi3", "Phi3ForCausalLM", "Phi3ForSequenceClassification", ReadPhi3},
};

const FamilyRow& RowOf(Family family) {
  return *std::find_if(std::begin(kFamilies), std::end(kFamilies),
                       [&](const FamilyRow& row) { return row.family == family; });
}

// What every file of transformers may hold and no number depends on here: dropout is off, caches are our own, and
// generation's defaults are the job's business.
void PassHarmless(ConfigReader& reader) {
  reader.Harmless({"model_type",
                   "architectures",
                   "transformers_version",
                   "_name_or_path",
                   "name_or_path",
                   "use_cache",
                   "return_dict",
                   "return_dict_in_generate",
                   "output_hidden_states",
                   "output_attentions",
                   "output_scores",
                   "chunk_size_feed_forward",
                   "is_decoder",
                   "tie_encoder_decoder",
                   "prefix",
                   "problem_type",
                   "finetuning_task",
                   "task_specific_params",
                   "tokenizer_class",
                   "sep_token_id",
                   "decoder_start_token_id",
                   "id2label",
                   "label2id",
                   "num_labels",
                   "attention_dropout",
                   "torchscript",
                   "use_bfloat16",
                   "tf_legacy_loss",
                   "attn_implementation",
                   "_attn_implementation",
                   "_attn_implementation_autoset",
                   "_attn_implementation_internal",
                   "experts_implementation",
                   "auto_map",
                   "cache_implementation",
                   "gradient_checkpointing",
                   "transformers.js_config",
                   "neftune_noise_alpha",
                   "_num_labels",
                   "output_past",
                   "custom_pipelines",
                   "unsloth_version",
                   "unsloth_fixed"});
  reader.Harmless({"max_length",
                   "max_new_tokens",
                   "min_length",
                   "do_sample",
                   "early_stopping",
                   "num_beams",
                   "num_beam_groups",
                   "diversity_penalty",
                   "temperature",
                   "top_k",
                   "top_p",
                   "typical_p",
                   "repetition_penalty",
                   "length_penalty",
                   "no_repeat_ngram_size",
                   "encoder_no_repeat_ngram_size",
                   "bad_words_ids",
                   "num_return_sequences",
                   "forced_bos_token_id",
                   "forced_eos_token_id",
                   "remove_invalid_values",
                   "exponential_decay_length_penalty",
                   "suppress_tokens",
                   "begin_suppress_tokens"});
}

absl::Status ReadHead(ConfigReader& reader, const FamilyRow& row, ModelConfig* config) {
  const Json& json = reader.json();
  config->architecture = row.causal;
  if (reader.Has("architectures")) {
    const Json& names = json["architectures"];
    if (!names.is_array() || names.size() != 1 || !names[0].is_string())
      return reader.Problem("architectures", absl::StrCat("expected a list of one name, found ", names.dump()));
    config->architecture = names[0].get<std::string>();
  }
  const bool gemma3_other = row.family == Family::kGemma3 && config->architecture == "Gemma3ForSequenceClassification";
  if (config->architecture == row.classifier || gemma3_other) {
    config->architecture = row.classifier;
    config->num_labels = 2;  // transformers' own default
    if (reader.Has("id2label") && json["id2label"].is_object())
      config->num_labels = static_cast<int>(json["id2label"].size());
    int64_t labels = config->num_labels;
    RLHF_RETURN_IF_BAD(reader.Int("num_labels", &labels, false, 1, kMostKeys));
    config->num_labels = static_cast<int>(labels);
    if (config->num_labels < 1) return reader.Problem("id2label", "expected at least one label");
  } else if (config->architecture != row.causal) {
    return reader.Problem("architectures", absl::StrCat("found \"", config->architecture, "\"; supported: ", row.causal,
                                                        " and ", row.classifier));
  }
  return absl::OkStatus();
}

// As a double: no product of hostile sizes may wrap.
double ParametersOf(const ModelConfig& c) {
  const auto d = [](int64_t value) { return static_cast<double>(value); };
  const double q = d(c.num_heads) * d(c.head_dim), kv = d(c.num_kv_heads) * d(c.head_dim);
  const double norm = d(c.hidden_size) * (c.norm == Norm::kLayer ? 2 : 1);
  double layer = d(c.hidden_size) * (q + 2 * kv) + q * d(c.hidden_size) +
                 (c.gated_mlp ? 3 : 2) * d(c.hidden_size) * d(c.intermediate_size) + (c.sandwich_norms ? 4 : 2) * norm;
  if (c.qkv_bias) layer += q + 2 * kv;
  if (c.attention_out_bias) layer += d(c.hidden_size);
  if (c.mlp_bias) layer += (c.gated_mlp ? 2 : 1) * d(c.intermediate_size) + d(c.hidden_size);
  if (c.query_key_norm) layer += 2 * d(c.head_dim);
  double total = d(c.vocab_size) * d(c.hidden_size) + d(c.num_layers) * layer + norm;
  if (c.rope.kind == Rope::Kind::kNone) total += d(c.max_position_embeddings) * d(c.hidden_size);
  if (c.num_labels > 0) return total + d(c.num_labels) * d(c.hidden_size);
  return c.tie_word_embeddings ? total : total + d(c.vocab_size) * d(c.hidden_size);
}

}  // namespace

std::string ArchitectureName(Family family, bool classification) {
  return classification ? RowOf(family).classifier : RowOf(family).causal;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& where) {
  if (text.size() > kLargest || TooDeep(text)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": expected a JSON object of at most ", kLargest,
                                                   " bytes, nested at most ", kDeepest, " deep"));
  }
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(where, ": expected a JSON object"));
  if (const std::string path = TooWide(json, ""); !path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", path.substr(0, 200), ": expected at most ", kMostKeys, " keys"));
  }
  ConfigReader reader(json, where);
  std::string type;
  RLHF_RETURN_IF_BAD(reader.Text("model_type", &type));
  const auto* row = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                 [&](const FamilyRow& candidate) { return type == candidate.model_type; });
  if (row == std::end(kFamilies)) {
    return reader.Problem("model_type",
                          absl::StrCat("found \"", type, "\"; supported: ",
                                       absl::StrJoin(kFamilies, ", ", [](std::string* out, const FamilyRow& known) {
                                         absl::StrAppend(out, known.model_type);
                                       })));
  }
  ModelConfig config;
  config.family = row->family;
  config.json = text;
  PassHarmless(reader);
  // Before the family's own reading, whose checks rest on nothing of these.
  RLHF_RETURN_IF_BAD(reader.Int("vocab_size", &config.vocab_size, true, 1, 1 << 28));
  RLHF_RETURN_IF_BAD(row->read(reader, &config));
  config.windowed.resize(static_cast<size_t>(config.num_layers), false);
  RLHF_RETURN_IF_BAD(ReadHead(reader, *row, &config));
  RLHF_RETURN_IF_BAD(reader.Bool("tie_word_embeddings", &config.tie_word_embeddings));
  RLHF_RETURN_IF_BAD(reader.Double("initializer_range", &config.initializer_range, 0, 1));
  RLHF_RETURN_IF_BAD(reader.TokenId("bos_token_id", &config.bos_token_id));
  RLHF_RETURN_IF_BAD(reader.TokenId("eos_token_id", &config.eos_token_id));
  RLHF_RETURN_IF_BAD(reader.TokenId("pad_token_id", &config.pad_token_id));
  for (const char* key : {"torch_dtype", "dtype"}) {
    RLHF_RETURN_IF_BAD(reader.Only(key, {"float32", "bfloat16", "float16"}));
    RLHF_RETURN_IF_BAD(reader.Text(key, &config.dtype));
  }
  RLHF_RETURN_IF_BAD(reader.Only("quantization_config", {}));
  RLHF_RETURN_IF_BAD(reader.Only("is_encoder_decoder", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("add_cross_attention", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("cross_attention_hidden_size", {}));
  RLHF_RETURN_IF_BAD(reader.Only("pruned_heads", {Json::object()}));
  RLHF_RETURN_IF_BAD(reader.CheckAllKnown());
  if (const double parameters = ParametersOf(config); parameters > kMostParameters) {
    return reader.Problem(
        "hidden_size", absl::StrCat("the sizes make ", parameters, " parameters; expected at most ", kMostParameters));
  }
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  // Before it is read: who uploads a model decides how large it is.
  std::error_code error;
  if (const auto size = std::filesystem::file_size(path, error); !error && size > kLargest)
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected at most ", kLargest, " bytes, found ", size));
  auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseModelConfig(*text, path);
}

std::string ModelConfigToJson(const ModelConfig& config) {
  auto json = nlohmann::ordered_json::parse(config.json);
  json["architectures"] = {ArchitectureName(config.family, config.num_labels > 0)};
  for (const char* key : {"torch_dtype", "num_labels", "id2label", "label2id"}) json.erase(key);
  if (config.num_labels > 0) {
    nlohmann::ordered_json id2label, label2id;
    for (int i = 0; i < config.num_labels; ++i) {
      id2label[std::to_string(i)] = absl::StrCat("LABEL_", i);
      label2id[absl::StrCat("LABEL_", i)] = i;
    }
    json["id2label"] = id2label;
    json["label2id"] = label2id;
  }
  json["dtype"] = config.dtype;
  return json.dump(2) + "\n";
}

int64_t NumParameters(const ModelConfig& config) {
  return static_cast<int64_t>(ParametersOf(config));
}

}  // namespace rlhf::artifact
