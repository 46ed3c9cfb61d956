// What the families that descend from Llama share.
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "artifact/config/reader.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

// transformers' names of the gated perceptron's activation.
absl::Status ReadActivation(ConfigReader& reader, const char* key, ModelConfig* config) {
  static const std::map<std::string, Activation> kNames = {
      {"silu", Activation::kSilu},          {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu},          {"gelu_new", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh}};
  std::string name;
  RLHF_RETURN_IF_BAD(reader.Text(key, &name));
  if (name.empty()) return absl::OkStatus();
  const auto found = kNames.find(name);
  if (found == kNames.end()) {
    return reader.Problem(key, absl::StrCat("found \"", name,
                                            "\", which is not supported; supported: silu, gelu, gelu_new, gelu_fast, "
                                            "gelu_pytorch_tanh"));
  }
  config->activation = found->second;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadDecoderSizes(ConfigReader& reader, const char* activation_key, ModelConfig* config) {
  RLHF_RETURN_IF_BAD(reader.Int("hidden_size", &config->hidden_size, true));
  RLHF_RETURN_IF_BAD(reader.Int("intermediate_size", &config->intermediate_size, true));
  RLHF_RETURN_IF_BAD(reader.Int("num_hidden_layers", &config->num_layers, true, 1, 10000));
  RLHF_RETURN_IF_BAD(reader.Int("num_attention_heads", &config->num_heads, true, 1, 100000));
  if (config->num_kv_heads == 0) config->num_kv_heads = config->num_heads;
  RLHF_RETURN_IF_BAD(reader.Int("num_key_value_heads", &config->num_kv_heads, false, 1, 100000));
  if (config->num_heads % config->num_kv_heads != 0) {
    return reader.Problem("num_key_value_heads", absl::StrCat("expected a divisor of the ", config->num_heads,
                                                              " heads, found ", config->num_kv_heads));
  }
  if (config->head_dim == 0) {
    config->head_dim = config->hidden_size / config->num_heads;
    if (config->hidden_size % config->num_heads != 0 && !reader.Has("head_dim")) {
      return reader.Problem("hidden_size", absl::StrCat("expected a multiple of the ", config->num_heads,
                                                        " heads, found ", config->hidden_size));
    }
  }
  RLHF_RETURN_IF_BAD(reader.Int("head_dim", &config->head_dim, false, 1, 65536));
  RLHF_RETURN_IF_BAD(reader.Int("max_position_embeddings", &config->max_position_embeddings, false));
  RLHF_RETURN_IF_BAD(reader.Double("rms_norm_eps", &config->norm_eps, 0, 1));
  RLHF_RETURN_IF_BAD(ReadActivation(reader, activation_key, config));
  config->attention_scale = 1 / std::sqrt(static_cast<double>(config->head_dim));
  return absl::OkStatus();
}

absl::Status ReadLayerTypes(ConfigReader& reader, bool has_window, const std::vector<bool>& otherwise,
                            ModelConfig* config) {
  config->windowed = otherwise;
  const Json& types = reader.Raw("layer_types");
  if (!types.is_null()) {
    if (!types.is_array() || static_cast<int64_t>(types.size()) != config->num_layers) {
      return reader.Problem("layer_types",
                            absl::StrCat("expected a list of ", config->num_layers, " texts, found ", types.dump()));
    }
    for (size_t i = 0; i < types.size(); ++i) {
      if (types[i] != "full_attention" && types[i] != "sliding_attention") {
        return reader.Problem(absl::StrCat("layer_types[", i, "]"),
                              absl::StrCat("found ", types[i].dump(),
                                           ", which is not supported; supported: full_attention, sliding_attention"));
      }
      config->windowed[i] = types[i] == "sliding_attention";
    }
  }
  for (size_t i = 0; i < config->windowed.size(); ++i) {
    if (!config->windowed[i]) continue;
    if (!has_window || config->sliding_window < 1) {
      return reader.Problem("layer_types",
                            absl::StrCat("layer ", i, " has sliding_attention, but there is no sliding_window"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLlama(ConfigReader& reader, ModelConfig* config) {
  config->norm_eps = 1e-6;
  config->max_position_embeddings = 2048;
  RLHF_RETURN_IF_BAD(ReadDecoderSizes(reader, "hidden_act", config));
  RLHF_RETURN_IF_BAD(reader.Bool("attention_bias", &config->qkv_bias));
  config->attention_out_bias = config->qkv_bias;
  RLHF_RETURN_IF_BAD(reader.Bool("mlp_bias", &config->mlp_bias));
  RLHF_RETURN_IF_BAD(reader.Only("sliding_window", {}));
  // How the products are cut for tensor parallelism in training: it changes no sum here.
  reader.Harmless({"pretraining_tp"});
  // What nanotron (SmolLM) and the first converters wrote, and transformers does not read.
  reader.Harmless({"is_llama_config", "max_sequence_length"});
  RLHF_RETURN_IF_BAD(reader.Only("rope_interleaved", {false}));
  return ReadRope(reader, 10000, 1, config);
}

absl::Status ReadMistral(ConfigReader& reader, ModelConfig* config) {
  config->norm_eps = 1e-6;
  config->max_position_embeddings = 4096 * 32;
  if (!reader.Has("num_key_value_heads")) config->num_kv_heads = 8;
  RLHF_RETURN_IF_BAD(ReadDecoderSizes(reader, "hidden_act", config));
  // transformers takes an absent window as 4096, a null one as none.
  config->sliding_window = reader.json().contains("sliding_window") ? 0 : 4096;
  RLHF_RETURN_IF_BAD(reader.Int("sliding_window", &config->sliding_window, false));
  config->windowed.assign(static_cast<size_t>(config->num_layers), config->sliding_window > 0);
  return ReadRope(reader, 10000, 1, config);
}

absl::Status ReadPhi3(ConfigReader& reader, ModelConfig* config) {
  config->norm_eps = 1e-5;
  config->max_position_embeddings = 4096;
  config->qkv_layout = QkvLayout::kJoined;
  config->joined_gate_up = true;
  RLHF_RETURN_IF_BAD(ReadDecoderSizes(reader, "hidden_act", config));
  RLHF_RETURN_IF_BAD(reader.Int("sliding_window", &config->sliding_window, false));
  RLHF_RETURN_IF_BAD(reader.Only("attention_bias", {false}));
  // Phi-4-mini says these; transformers reads none of them.
  RLHF_RETURN_IF_BAD(reader.Only("mlp_bias", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("lm_head_bias", {false}));
  RLHF_RETURN_IF_BAD(reader.Only("full_attn_mod", {1}));
  RLHF_RETURN_IF_BAD(reader.Only("interpolate_factor", {1}));
  config->windowed.assign(static_cast<size_t>(config->num_layers), config->sliding_window > 0);
  reader.Harmless({"resid_pdrop", "embd_pdrop", "original_max_position_embeddings"});
  return ReadRope(reader, 10000, 1, config);
}

}  // namespace rlhf::artifact
