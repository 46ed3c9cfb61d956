// The part of a Hugging Face `config.json` that shapes a transformer. One description for all families.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

enum class Family { kLlama, kGpt2 };
enum class Norm { kRms, kLayer };
enum class Activation { kSilu, kGeluNew, kGelu };

struct ModelConfig {
  Family family = Family::kLlama;
  std::string architecture;  // "LlamaForCausalLM", "GPT2LMHeadModel", "LlamaForSequenceClassification", …
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;  // context length in tokens
  Norm norm = Norm::kRms;
  double norm_eps = 1e-5;
  Activation activation = Activation::kSilu;
  bool gated_mlp = true;
  double rope_theta = 10000.0;  // 0: learned positions (GPT-2)
  bool attention_bias = false;  // biases on q, k, v, o
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  int num_labels = 0;  // > 0: a sequence-classification head ("score"), no LM head
  std::optional<int32_t> bos_token_id, eos_token_id, pad_token_id;
  std::string dtype = "float32";  // dtype of the stored weights: float32, bfloat16, float16
};

// Parses and validates DIR/config.json. Settings that would change the numbers but are not implemented (rope_scaling, a
// sliding window, dropout is ignored as training is without) are InvalidArgument naming the key, its value and what is
// supported; never ignored.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& where);

// The config.json that `transformers` reads back.
std::string ModelConfigToJson(const ModelConfig& config);

// Number of parameters (tied weights counted once).
int64_t NumParameters(const ModelConfig& config);

}  // namespace rlhf::artifact
