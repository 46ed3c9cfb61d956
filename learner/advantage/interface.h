// Advantage estimators, chosen by PpoSpec.advantage. One small file each.
#pragma once

#include <memory>
#include <vector>

#include "model/libtorch.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

// The whole batch, the same on every rank, in issue order. Rows are response tokens [N], packed in the order of the
// samples; all float32 on the CPU.
struct AdvantageInputs {
  torch::Tensor rewards;              // [N] per-token rewards (KL and score)
  torch::Tensor values;               // [N] critic's values before the update; undefined without a critic
  std::vector<int64_t> counts;        // response tokens of each sample
  std::vector<double> batch_returns;  // Σ of each sample's token rewards
  int samples_per_prompt = 1;         // consecutive samples share a prompt
  double gamma = 1, lambda = 0.95;
};
struct Advantages {
  torch::Tensor advantages;  // [N]
  torch::Tensor returns;     // [N] targets of the critic; undefined without one
};

class AdvantageEstimator {
 public:
  virtual ~AdvantageEstimator() = default;
  virtual bool needs_critic() const = 0;
  virtual Advantages Compute(const AdvantageInputs& inputs) const = 0;
};
// gae (Schulman et al. 2016), rloo (Ahmadian et al. 2024), grpo with and without the division by the standard deviation
// (Shao et al. 2024; Liu et al. 2025), reinforce_baseline (REINFORCE++, Hu et al. 2025, with the batch's mean).
std::unique_ptr<AdvantageEstimator> MakeAdvantageEstimator(v1::AdvantageEstimator which);

}  // namespace rlhf::learner
