#include "learner/advantage/group.h"

#include <cmath>

namespace rlhf::learner {
namespace {

// Spreads one value a sample over its tokens.
Advantages Spread(const AdvantageInputs& inputs, const std::vector<double>& by_sample) {
  Advantages out;
  out.advantages = torch::empty_like(inputs.rewards);
  float* const advantages = out.advantages.data_ptr<float>();
  int64_t at = 0;
  for (size_t i = 0; i < inputs.counts.size(); ++i) {
    for (int64_t t = 0; t < inputs.counts[i]; ++t) advantages[at++] = static_cast<float>(by_sample[i]);
  }
  return out;
}

struct Group {
  double sum = 0, mean = 0, deviation = 0;
};

Group GroupOf(const AdvantageInputs& inputs, size_t sample) {
  const auto n = static_cast<size_t>(inputs.samples_per_prompt);
  const size_t begin = sample / n * n;
  Group group;
  for (size_t i = begin; i < begin + n; ++i) group.sum += inputs.batch_returns[i];
  group.mean = group.sum / static_cast<double>(n);
  for (size_t i = begin; i < begin + n; ++i)
    group.deviation += (inputs.batch_returns[i] - group.mean) * (inputs.batch_returns[i] - group.mean);
  group.deviation = std::sqrt(group.deviation / static_cast<double>(n - 1));
  return group;
}

}  // namespace

Advantages RlooEstimator::Compute(const AdvantageInputs& inputs) const {
  std::vector<double> advantages(inputs.batch_returns.size());
  for (size_t i = 0; i < advantages.size(); ++i) {
    const double own = inputs.batch_returns[i];
    advantages[i] = own - (GroupOf(inputs, i).sum - own) / (inputs.samples_per_prompt - 1);
  }
  return Spread(inputs, advantages);
}

Advantages GrpoEstimator::Compute(const AdvantageInputs& inputs) const {
  std::vector<double> advantages(inputs.batch_returns.size());
  for (size_t i = 0; i < advantages.size(); ++i) {
    const Group group = GroupOf(inputs, i);
    advantages[i] = (inputs.batch_returns[i] - group.mean) / (divide_ ? group.deviation + 1e-4 : 1.0);
  }
  return Spread(inputs, advantages);
}

}  // namespace rlhf::learner
