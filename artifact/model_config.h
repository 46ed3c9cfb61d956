// The part of a Hugging Face `config.json` that shapes a transformer. One description for all families.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

enum class Family { kLlama, kGpt2, kGptNeoX, kMistral, kQwen2, kQwen3, kGemma2, kGemma3, kPhi3 };
// kRmsOffset: the stored weight is the scale less one (Gemma).
enum class Norm { kRms, kRmsOffset, kLayer };
enum class Activation { kSilu, kGeluTanh, kGelu };
// How query, key and value projections are stored: three matrices; one with all queries, then keys, then values; one
// with query, key and value of each head in turn (GPT-NeoX).
enum class QkvLayout { kSeparate, kJoined, kPerHead };

// Rotary positions: frequencies theta^(-2i/dim), scaled by kind. Formulas: transformers' modeling_rope_utils.
struct Rope {
  enum class Kind { kNone, kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongRope };
  Kind kind = Kind::kNone;
  double theta = 10000.0;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn
  int64_t original_positions = 0;                    // llama3, yarn, longrope: the trained length
  double attention_factor = 1;                       // yarn, longrope: multiplies cos and sin
  std::vector<double> short_factor, long_factor;  // longrope; the long ones serve sequences beyond the trained length
};

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
  // Context length in tokens: what may be generated, scored and trained. With longrope the trained length, since beyond
  // it every position of a sequence turns by other frequencies.
  int64_t max_position_embeddings = 0;
  Norm norm = Norm::kRms;
  double norm_eps = 1e-5;
  Activation activation = Activation::kSilu;
  bool gated_mlp = true;
  double initializer_range = 0.02;

  Rope rope;               // kNone: learned positions (GPT-2)
  Rope local_rope;         // of windowed layers (Gemma 3); kNone: the same as the others
  int64_t rotary_dim = 0;  // how many of head_dim turn; even

  int64_t sliding_window = 0;    // tokens a windowed layer sees, its own included
  std::vector<bool> windowed;    // by layer
  double attention_scale = 1;    // of query · key
  double attention_softcap = 0;  // 0: none; s -> cap tanh(s / cap)
  double logit_softcap = 0;      // 0: none
  double embedding_scale = 1;
  QkvLayout qkv_layout = QkvLayout::kSeparate;
  bool joined_gate_up = false;  // one matrix (Phi-3)
  bool qkv_bias = false, attention_out_bias = false, mlp_bias = false;
  bool query_key_norm = false;     // root-mean-square norm of each head's query and key
  bool sandwich_norms = false;     // also after attention and after the perceptron (Gemma)
  bool parallel_residual = false;  // attention and perceptron read the same input (GPT-NeoX)
  bool tie_word_embeddings = false;

  int num_labels = 0;  // > 0: a sequence-classification head ("score"), no LM head
  std::optional<int32_t> bos_token_id, eos_token_id, pad_token_id;  // the first, where the file has a list
  std::string dtype = "float32";  // dtype of the stored weights: float32, bfloat16, float16
  std::string json;               // the file as it was read: what is written keeps every setting of it
};

// Parses and validates DIR/config.json. A setting that is unknown, or not supported at its value, is InvalidArgument
// naming the key, its value and what is supported; only settings known to change no number (dropout, which is off;
// caches; generation defaults) pass unread. See docs/models.md.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& where);

// The architecture's name in transformers, with a language-model head or a classification head.
std::string ArchitectureName(Family family, bool classification);

// The config.json that `transformers` reads back: the file as it was read, with architecture, labels and dtype of now.
std::string ModelConfigToJson(const ModelConfig& config);

// Parameters of the whole model, tied ones once.
int64_t NumParameters(const ModelConfig& config);

}  // namespace rlhf::artifact
