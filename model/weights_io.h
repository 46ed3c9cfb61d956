// Model directories (Hugging Face layout) to and from Transformers.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/safetensors.h"
#include "common/file_parts.h"
#include "model/transformer.h"

namespace rlhf::model {

struct LoadOptions {
  torch::Dtype dtype = torch::kFloat32;
  torch::Device device = torch::kCPU;
  bool int8 = false;              // Transformer::UseInt8; each weight is quantized as it is read
  bool join_projections = false;  // Transformer::JoinProjections, of a float model: for one that is not trained
  // kLm loads a causal LM; kScalar a *ForSequenceClassification model.
  HeadKind head = HeadKind::kLm;
  // With head = kScalar: accept a causal LM directory and start the scalar head at random (std 1/sqrt(hidden+1)).
  bool init_missing_scalar_head = false;
  // With head = kScalar: how many outputs the head has. 0: as many as the model has, one for a causal LM. A head of
  // another size counts as missing.
  int scalar_outputs = 0;
  uint64_t head_seed = 0;
};

// Missing, extra and misshaped tensors are named (InvalidArgument); of reading, statuses are SafetensorsFile::Read's.
absl::StatusOr<std::unique_ptr<Transformer>> LoadModel(const std::string& model_dir, const LoadOptions& options = {});

// A tensor as it is stored, on the host, read by all threads of LibTorch. Statuses are SafetensorsFile::Read's.
absl::StatusOr<torch::Tensor> ReadTensor(const artifact::ModelWeights::Entry& entry);

// Writes config.json, generation_config.json and model.safetensors (and copies tokenizer files and the generation
// configuration from tokenizer_dir when not empty) so that `transformers` loads it without a warning. Adapters are
// merged. For scalar heads writes *ForSequenceClassification with a label for each output. durability is not that of
// the tokenizer's files, which are copies.
absl::Status SaveModel(const Transformer& model, const std::string& out_dir, const std::string& tokenizer_dir,
                       Durability durability = Durability::kSynced);

// A safetensors file of these, in their order, from any device and of any strides.
absl::Status WriteTensors(const std::string& path, const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                          Durability durability = Durability::kSynced);

// What a reward model's outputs mean, stored beside it (reward_normalization.json).
struct RewardHead {
  std::string criterion;
  double weight = 1, shift = 0, scale = 1;
  double Normalize(double raw) const { return (raw - shift) * scale; }
};
struct RewardNormalization {
  double shift = 0, scale = 1;
  std::vector<RewardHead> heads = {};  // in the order of the outputs, one a criterion; empty: there is one output
  // Of a sequence's outputs: (raw - shift) * scale, where raw is the output or, with heads, Σ weight · normalised head.
  double Apply(const double* outputs) const;
};
absl::Status SaveRewardNormalization(const RewardNormalization& n, const std::string& dir);
absl::StatusOr<RewardNormalization> LoadRewardNormalization(
    const std::string& dir);  // identity when the file is absent
// InvalidArgument unless the model has as many outputs as the normalisation has heads.
absl::Status CheckRewardHeads(const Transformer& model, const RewardNormalization& n, const std::string& model_dir);

// XXH3-128 over the bytes of all trained parameters in order: the digest of a policy version.
std::string WeightsDigest(const Transformer& model);

}  // namespace rlhf::model
