// What the transformer's own files share: a layer's parts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/families/family.h"
#include "model/int8_linear.h"
#include "model/kernels/cpu_kernels.h"
#include "model/transformer.h"

namespace rlhf::model {

struct Transformer::Linear {
  std::string module;
  torch::Tensor weight, bias;
  torch::Tensor lora_a, lora_b;  // [rank, in] and [out, rank], where adapted
  int64_t in = 0, out = 0;
  // Where the projections that read the same input are joined: the tensors of all of them, of which weight and bias are
  // rows.
  torch::Tensor joined_weight, joined_bias;
  // Where the model is int8: the joint weight of the projections that read the same input, and this one's first row.
  std::shared_ptr<Int8Weight> int8;
  int64_t int8_row = 0;
};

struct Transformer::Layer {
  torch::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
  torch::Tensor post_attention_norm, post_mlp_norm, query_norm, key_norm;
  std::vector<Linear> qkv, mlp_in, attention_out, mlp_out;

  // Every tensor that is there, in a fixed order.
  template <typename Fn>
  void ForEachTensor(const Fn& fn) {
    const auto visit = [&fn](torch::Tensor& tensor) {
      if (tensor.defined()) fn(tensor);
    };
    for (torch::Tensor* norm : {&norm1_weight, &norm1_bias, &norm2_weight, &norm2_bias, &post_attention_norm,
                                &post_mlp_norm, &query_norm, &key_norm})
      visit(*norm);
    for (std::vector<Linear>* parts : {&qkv, &mlp_in, &attention_out, &mlp_out}) {
      for (Linear& part : *parts) {
        for (torch::Tensor* tensor : {&part.weight, &part.bias, &part.lora_a, &part.lora_b}) visit(*tensor);
      }
    }
  }
};

kernels::AttentionShape AttentionShapeOf(const artifact::ModelConfig& config, int64_t window);

}  // namespace rlhf::model
