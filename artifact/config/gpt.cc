// GPT-2 and GPT-NeoX (Pythia).
#include <cmath>

#include "absl/strings/str_cat.h"
#include "artifact/config/reader.h"

namespace rlhf::artifact {
namespace {

absl::Status ReadGelu(ConfigReader& reader, const char* key, const std::string& otherwise, ModelConfig* config) {
  std::string name = otherwise;
  RLHF_RETURN_IF_BAD(reader.Only(key, {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"}));
  RLHF_RETURN_IF_BAD(reader.Text(key, &name));
  config->activation = name == "gelu" ? Activation::kGelu : Activation::kGeluTanh;
  return absl::OkStatus();
}

absl::Status HeadsDivide(const ConfigReader& reader, const char* key, const ModelConfig& config) {
  if (config.hidden_size % config.num_heads == 0) return absl::OkStatus();
  return reader.Problem(
      key, absl::StrCat("expected a multiple of the ", config.num_heads, " heads, found ", config.hidden_size));
}

// transformers 4 writes some of GPT-NeoX's settings twice and reads them under their older names alone; 5 moves what it
// read into the rope and leaves the other beside it.
absl::Status SameAs(ConfigReader& reader, const char* key, const char* read, double value) {
  for (const char* rope : {"rope_parameters", "rope_scaling"}) {
    const ConfigReader::Json& object = reader.Raw(rope);
    if (!object.is_object() || object.empty()) continue;
    if (object.contains(key) && object[key].is_number()) value = object[key].get<double>();
    break;
  }
  double other = value;
  RLHF_RETURN_IF_BAD(reader.Double(key, &other));
  if (other == value) return absl::OkStatus();
  return reader.Problem(
      key, absl::StrCat("expected ", value, ", which is the rope's own, ", read, " or its default, found ", other,
                        "; transformers reads no ", key, " beside them"));
}

}  // namespace

absl::Status ReadGpt2(ConfigReader& reader, ModelConfig* config) {
  config->norm = Norm::kLayer;
  config->gated_mlp = false;
  config->qkv_layout = QkvLayout::kJoined;
  config->qkv_bias = config->attention_out_bias = config->mlp_bias = true;
  config->tie_word_embeddings = true;
  RLHF_RETURN_IF_BAD(reader.Int("n_embd", &config->hidden_size, true));
  config->intermediate_size = 4 * config->hidden_size;
  RLHF_RETURN_IF_BAD(reader.Int("n_inner", &config->intermediate_size, false));
  RLHF_RETURN_IF_BAD(reader.Int("n_layer", &config->num_layers, true, 1, 10000));
  RLHF_RETURN_IF_BAD(reader.Int("n_head", &config->num_heads, true, 1, 100000));
  config->num_kv_heads = config->num_heads;
  config->head_dim = config->hidden_size / config->num_heads;
  RLHF_RETURN_IF_BAD(HeadsDivide(reader, "n_embd", *config));
  config->max_position_embeddings = 1024;
  RLHF_RETURN_IF_BAD(reader.Int("n_positions", &config->max_position_embeddings, false));
  RLHF_RETURN_IF_BAD(reader.Double("layer_norm_epsilon", &config->norm_eps, 0, 1));
  RLHF_RETURN_IF_BAD(ReadGelu(reader, "activation_function", "gelu_new", config));
  RLHF_RETURN_IF_BAD(reader.Only("scale_attn_weights", {true}));
  RLHF_RETURN_IF_BAD(reader.Only("scale_attn_by_inverse_layer_idx", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("add_cross_attention", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("n_special", {0}));
  config->attention_scale = 1 / std::sqrt(static_cast<double>(config->head_dim));
  // The summary head belongs to another model class; the upcast changes rounding only.
  reader.Harmless({"resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "summary_type", "summary_use_proj",
                   "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn",
                   "predict_special_tokens"});
  return absl::OkStatus();
}

absl::Status ReadGptNeoX(ConfigReader& reader, ModelConfig* config) {
  config->norm = Norm::kLayer;
  config->gated_mlp = false;
  config->qkv_layout = QkvLayout::kPerHead;
  config->mlp_bias = true;
  config->parallel_residual = true;
  bool attention_bias = true;
  RLHF_RETURN_IF_BAD(reader.Int("hidden_size", &config->hidden_size, true));
  RLHF_RETURN_IF_BAD(reader.Int("intermediate_size", &config->intermediate_size, true));
  RLHF_RETURN_IF_BAD(reader.Int("num_hidden_layers", &config->num_layers, true, 1, 10000));
  RLHF_RETURN_IF_BAD(reader.Int("num_attention_heads", &config->num_heads, true, 1, 100000));
  config->num_kv_heads = config->num_heads;
  config->head_dim = config->hidden_size / config->num_heads;
  RLHF_RETURN_IF_BAD(HeadsDivide(reader, "hidden_size", *config));
  config->max_position_embeddings = 2048;
  RLHF_RETURN_IF_BAD(reader.Int("max_position_embeddings", &config->max_position_embeddings, false));
  RLHF_RETURN_IF_BAD(reader.Double("layer_norm_eps", &config->norm_eps, 0, 1));
  RLHF_RETURN_IF_BAD(ReadGelu(reader, "hidden_act", "gelu", config));
  RLHF_RETURN_IF_BAD(reader.Bool("use_parallel_residual", &config->parallel_residual));
  RLHF_RETURN_IF_BAD(reader.Bool("attention_bias", &attention_bias));
  config->qkv_bias = config->attention_out_bias = attention_bias;
  config->attention_scale = 1 / std::sqrt(static_cast<double>(config->head_dim));
  reader.Harmless({"hidden_dropout", "classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"});
  double theta = 10000, partial = 0.25;
  RLHF_RETURN_IF_BAD(reader.Double("rotary_emb_base", &theta, 1, 1e12));
  RLHF_RETURN_IF_BAD(reader.Double("rotary_pct", &partial, 0, 1));
  RLHF_RETURN_IF_BAD(SameAs(reader, "rope_theta", "rotary_emb_base", theta));
  RLHF_RETURN_IF_BAD(SameAs(reader, "partial_rotary_factor", "rotary_pct", partial));
  return ReadRope(reader, theta, partial, config);
}

}  // namespace rlhf::artifact
