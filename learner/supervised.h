// Texts as token sequences with a loss weight for each, and the weighted negative log-likelihood over them. Used by SFT
// and by PPO's ptx.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/tokenizer.h"
#include "model/libtorch.h"
#include "model/transformer.h"

namespace rlhf::learner {

// prompt tokens (with what the tokenizer's template puts before), response tokens, end of text.
struct SupervisedExample {
  std::vector<int32_t> tokens;
  int64_t response_begin = 0;
};

class SupervisedData {
 public:
  // Reads JSON lines {"prompt","response"} or {"messages"}. InvalidArgument names the record that has no response or is
  // longer than the context.
  static absl::StatusOr<SupervisedData> Load(const std::string& path, const artifact::Tokenizer& tokenizer,
                                             int64_t context, double prompt_loss_weight);

  size_t size() const { return examples_.size(); }
  const std::vector<int64_t>& lengths() const { return lengths_; }
  // Σ weights of the examples' predicted tokens: the loss's denominator, known to every rank.
  double Weight(const std::vector<size_t>& items) const;
  // Σ weight · −log p over the items, with gradient, float32 scalar.
  torch::Tensor WeightedNll(const model::Transformer& model, const std::vector<size_t>& items) const;

 private:
  std::vector<SupervisedExample> examples_;
  std::vector<int64_t> lengths_;
  double prompt_weight_ = 0;
};

}  // namespace rlhf::learner
