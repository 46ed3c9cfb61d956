// What a model family is: the names and shapes of its parameters, and which of them play which part. One small file
// each; how the parts compute is ModelConfig's.
#pragma once

#include <string>
#include <vector>

#include "artifact/model_config.h"
#include "model/libtorch.h"

namespace rlhf::model {

// A projection. Hugging Face stores Linear as [out, in] and GPT-2's Conv1D as [in, out].
struct Projection {
  std::string module;        // "model.layers.0.self_attn.q_proj": what an adapter is attached to
  std::string weight, bias;  // parameter names; empty bias: none
  int64_t in = 0, out = 0;
};

struct LayerNames {
  std::string norm1_weight, norm1_bias, norm2_weight, norm2_bias;  // before attention, before the perceptron
  std::string post_attention_norm, post_mlp_norm;                  // sandwich norms, or empty
  std::string query_norm, key_norm;                                // or empty
  std::vector<Projection> qkv;                                     // one, or q, k and v
  Projection attention_out;
  std::vector<Projection> mlp_in;  // one, or gate and up
  Projection mlp_out;
};

struct FamilyDescription {
  std::string token_embedding, position_embedding;  // empty: rotary
  std::vector<LayerNames> layers;
  std::string final_norm_weight, final_norm_bias;
  std::string lm_head;  // equal to token_embedding when tied
  std::string scalar_head = "score.weight";
  bool transposed = false;  // Conv1D layout
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
    enum class Init { kNormal, kZero, kOne, kScalarHead } init = Init::kNormal;
  };
  std::vector<Parameter> parameters;  // in file order
  // Tensors some checkpoints carry that are not parameters (buffers), matched at the end of the name.
  std::vector<std::string> ignored_suffixes;
  // A prefix that some checkpoints leave out ("transformer.").
  std::string optional_prefix;

  // Each adds parameters and returns their names.
  Projection AddProjection(const std::string& module, int64_t in, int64_t out, bool bias);
  void AddNorm(const std::string& module, int64_t width, artifact::Norm norm, std::string* weight, std::string* bias);
  // The head: scalar, tied, or a matrix of its own by this name.
  void AddHead(const artifact::ModelConfig& config, bool scalar, const std::string& lm_head_name);
};

// scalar_head: the classification head instead of the language model's.
FamilyDescription Describe(const artifact::ModelConfig& config, bool scalar_head);
// Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3: one naming scheme; the configuration says which parts there are.
FamilyDescription DescribeDecoder(const artifact::ModelConfig& config, bool scalar_head);
FamilyDescription DescribeGpt2(const artifact::ModelConfig& config, bool scalar_head);
FamilyDescription DescribeGptNeoX(const artifact::ModelConfig& config, bool scalar_head);

}  // namespace rlhf::model
