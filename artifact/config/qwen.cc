// Qwen 2, 2.5 and 3.
#include "artifact/config/reader.h"

namespace rlhf::artifact {
namespace {

absl::Status ReadShared(ConfigReader& reader, ModelConfig* config) {
  config->norm_eps = 1e-6;
  config->max_position_embeddings = 32768;
  if (!reader.json().contains("num_key_value_heads")) config->num_kv_heads = 32;
  RLHF_RETURN_IF_BAD(ReadDecoderSizes(reader, "hidden_act", config));
  RLHF_RETURN_IF_BAD(reader.Only("use_mrope", {false}));  // Qwen 2.5's base models say so
  bool use_window = false;
  int64_t max_window_layers = 28;
  RLHF_RETURN_IF_BAD(reader.Bool("use_sliding_window", &use_window));
  int64_t window = reader.json().contains("sliding_window") ? 0 : 4096;
  RLHF_RETURN_IF_BAD(reader.Int("sliding_window", &window, false));
  RLHF_RETURN_IF_BAD(reader.Int("max_window_layers", &max_window_layers, false, 0));
  if (use_window) config->sliding_window = window;
  std::vector<bool> windowed;
  for (int64_t i = 0; i < config->num_layers; ++i)
    windowed.push_back(config->sliding_window > 0 && i >= max_window_layers);
  RLHF_RETURN_IF_BAD(ReadLayerTypes(reader, use_window, windowed, config));
  return ReadRope(reader, 10000, 1, config);
}

}  // namespace

absl::Status ReadQwen2(ConfigReader& reader, ModelConfig* config) {
  config->qkv_bias = true;
  return ReadShared(reader, config);
}

absl::Status ReadQwen3(ConfigReader& reader, ModelConfig* config) {
  config->query_key_norm = true;
  if (!reader.Has("head_dim")) config->head_dim = 128;
  RLHF_RETURN_IF_BAD(reader.Bool("attention_bias", &config->qkv_bias));
  config->attention_out_bias = config->qkv_bias;
  return ReadShared(reader, config);
}

}  // namespace rlhf::artifact
