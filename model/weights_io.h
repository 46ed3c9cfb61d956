// Model directories (Hugging Face layout) to and from Transformers.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/transformer.h"

namespace rlhf::model {

struct LoadOptions {
  torch::Dtype dtype = torch::kFloat32;
  torch::Device device = torch::kCPU;
  // kLm loads a causal LM; kScalar a *ForSequenceClassification model with one label.
  HeadKind head = HeadKind::kLm;
  // With head = kScalar: accept a causal LM directory and start the scalar head at random (std 1/sqrt(hidden+1)).
  bool init_missing_scalar_head = false;
  uint64_t head_seed = 0;
};

// Missing, extra and misshaped tensors are named (InvalidArgument).
absl::StatusOr<std::unique_ptr<Transformer>> LoadModel(const std::string& model_dir, const LoadOptions& options = {});

// Writes config.json, generation_config.json and model.safetensors (and copies tokenizer files and the generation
// configuration from tokenizer_dir when not empty) so that `transformers` loads it without a warning. Adapters are
// merged. For scalar heads writes *ForSequenceClassification with
// num_labels 1.
absl::Status SaveModel(const Transformer& model, const std::string& out_dir, const std::string& tokenizer_dir);

// Reward normalisation stored beside a reward model (reward_normalization.json): normalised = (raw - shift) * scale.
struct RewardNormalization {
  double shift = 0, scale = 1;
};
absl::Status SaveRewardNormalization(const RewardNormalization& n, const std::string& dir);
absl::StatusOr<RewardNormalization> LoadRewardNormalization(
    const std::string& dir);  // identity when the file is absent

// XXH3-128 over the bytes of all trained parameters in order: the digest of a policy version.
std::string WeightsDigest(const Transformer& model);

}  // namespace rlhf::model
