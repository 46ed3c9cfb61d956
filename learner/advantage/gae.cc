#include "learner/advantage/gae.h"

namespace rlhf::learner {

Advantages GaeEstimator::Compute(const AdvantageInputs& inputs) const {
  const torch::NoGradGuard no_grad;
  Advantages out;
  out.advantages = torch::empty_like(inputs.rewards);
  const float* const rewards = inputs.rewards.data_ptr<float>();
  const float* const values = inputs.values.data_ptr<float>();
  float* const advantages = out.advantages.data_ptr<float>();
  int64_t begin = 0;
  for (const int64_t count : inputs.counts) {
    double last = 0, next_value = 0;  // nothing follows the last token
    for (int64_t t = begin + count - 1; t >= begin; --t) {
      const double delta = rewards[t] + inputs.gamma * next_value - values[t];
      last = delta + inputs.gamma * inputs.lambda * last;
      advantages[t] = static_cast<float>(last);
      next_value = values[t];
    }
    begin += count;
  }
  out.returns = out.advantages + inputs.values;
  return out;
}

}  // namespace rlhf::learner
