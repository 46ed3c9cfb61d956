// What the transformer's own files share: a layer's parts.
#pragma once

#include <string>
#include <vector>

#include "model/families/family.h"
#include "model/kernels/cpu_kernels.h"
#include "model/transformer.h"

namespace rlhf::model {

struct Transformer::Linear {
  std::string module;
  torch::Tensor weight, bias;
  torch::Tensor lora_a, lora_b;  // [rank, in] and [out, rank], where adapted
  int64_t in = 0, out = 0;
};

struct Transformer::Layer {
  torch::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
  torch::Tensor post_attention_norm, post_mlp_norm, query_norm, key_norm;
  std::vector<Linear> qkv, mlp_in, attention_out, mlp_out;
};

kernels::AttentionShape AttentionShapeOf(const artifact::ModelConfig& config, int64_t window);

}  // namespace rlhf::model
