// The one transformer of learner, rollout worker and reward server: Llama and GPT-2 families by description.
//
// Tensors are on the parameters' device. Packed layout: sequences are concatenated without padding into [T] token ids,
// with position ids that start at 0 in each sequence and cumulative lengths. Not thread-safe: one caller at a time.
// LibTorch's exceptions leave these functions; entry points (see guard.h) turn them into Status.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "artifact/model_config.h"

namespace rlhf::model {

// Sequences packed without padding.
struct PackedBatch {
  torch::Tensor token_ids;       // int64 [T]
  torch::Tensor position_ids;    // int64 [T], from 0 in each sequence
  std::vector<int64_t> lengths;  // per sequence; sums to T
  static PackedBatch FromSequences(const std::vector<std::vector<int32_t>>& sequences,
                                   torch::Device device = torch::kCPU);
};

class KvCache;             // kv_cache.h
struct FamilyDescription;  // families/family.h
struct RotaryTable;        // fused_ops.h

enum class HeadKind { kLm, kScalar };  // logits over the vocabulary, or one float a token ("score")

class Transformer {
 public:
  // Parameters are allocated uninitialised; use InitRandom or weights_io.h.
  ~Transformer();
  Transformer(const artifact::ModelConfig& config, HeadKind head, torch::Dtype dtype, torch::Device device);

  const artifact::ModelConfig& config() const { return config_; }
  HeadKind head() const { return head_; }
  torch::Dtype dtype() const { return dtype_; }
  torch::Device device() const { return device_; }

  // Hugging Face names (without tied duplicates) to parameters, in a fixed order. The tensors are the live parameters.
  const std::vector<std::pair<std::string, torch::Tensor>>& named_parameters() const { return parameters_; }
  torch::Tensor parameter(const std::string& name) const;  // throws c10::Error when unknown

  // N(0, 0.02) for matrices (as transformers' initializer_range), zeros for biases, ones for norms; the scalar head
  // with std 1/sqrt(hidden+1).
  void InitRandom(uint64_t seed);

  // Training and scoring: final-norm hidden states [T, hidden], causal within each sequence. With autograd when
  // enabled.
  torch::Tensor Hidden(const PackedBatch& batch) const;
  // logits [N, vocab] for chosen rows of Hidden (float32 result when the model is bf16).
  torch::Tensor Logits(const torch::Tensor& hidden_rows) const;
  // The language-model or scalar head: [vocab, hidden] or [1, hidden]; the embedding itself when tied.
  const torch::Tensor& head_weight() const { return head_weight_; }
  // scalar head: float32 [N].
  torch::Tensor Scalar(const torch::Tensor& hidden_rows) const;

  // Prefill/decode over cache slots (no autograd). Appends tokens to slots: sequence i of the batch extends slot
  // slots[i] (its current length gives the first position; batch.position_ids must agree). Returns final-norm hidden
  // states of the LAST token of each sequence [B, hidden].
  torch::Tensor Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache) const;

  // Copies values in place (same names and shapes); used for weight updates while serving.
  void CopyFrom(const Transformer& other);

 private:
  struct Layer;
  torch::Tensor Embed(const torch::Tensor& token_ids, const torch::Tensor& position_ids) const;
  torch::Tensor Norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const;
  torch::Tensor Project(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) const;
  torch::Tensor Qkv(const Layer& layer, const torch::Tensor& x,
                    const torch::Tensor& positions) const;  // [T, heads + 2 · kv_heads, dim]
  torch::Tensor Mlp(const Layer& layer, const torch::Tensor& x) const;

  artifact::ModelConfig config_;
  HeadKind head_;
  torch::Dtype dtype_;
  torch::Device device_;
  std::unique_ptr<FamilyDescription> family_;
  std::vector<std::pair<std::string, torch::Tensor>> parameters_;
  std::unique_ptr<RotaryTable> rotary_;
  // The parameters again, by part. Projections that read the same input are joined for each forward pass.
  std::vector<Layer> layers_;
  torch::Tensor token_embedding_, position_embedding_, final_norm_weight_, final_norm_bias_, head_weight_;
};

}  // namespace rlhf::model
