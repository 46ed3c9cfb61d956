#include "learner/advantage/reinforce_baseline.h"

#include <numeric>

namespace rlhf::learner {

Advantages ReinforceBaselineEstimator::Compute(const AdvantageInputs& inputs) const {
  const double mean = std::accumulate(inputs.batch_returns.begin(), inputs.batch_returns.end(), 0.0) /
                      static_cast<double>(inputs.batch_returns.size());
  Advantages out;
  out.advantages = torch::empty_like(inputs.rewards);
  const float* const rewards = inputs.rewards.data_ptr<float>();
  float* const advantages = out.advantages.data_ptr<float>();
  int64_t begin = 0;
  for (const int64_t count : inputs.counts) {
    double rest = 0;
    for (int64_t t = begin + count - 1; t >= begin; --t) {
      rest += rewards[t];
      advantages[t] = static_cast<float>(rest - mean);
    }
    begin += count;
  }
  return out;
}

}  // namespace rlhf::learner
