#include "learner/rewards.h"

#include <algorithm>
#include <cmath>

namespace rlhf::learner {

torch::Tensor TokenRewards(const torch::Tensor& old_log_probs, const torch::Tensor& reference_log_probs,
                           const std::vector<int64_t>& counts, const std::vector<double>& scores,
                           double kl_coefficient) {
  const torch::NoGradGuard no_grad;
  torch::Tensor rewards =
      (-kl_coefficient * (old_log_probs - reference_log_probs)).to(torch::kCPU, torch::kFloat32).contiguous();
  float* const data = rewards.data_ptr<float>();
  int64_t at = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    at += counts[i];
    data[at - 1] += static_cast<float>(scores[i]);
  }
  return rewards;
}

Moments MomentsOf(const torch::Tensor& values) {
  const torch::NoGradGuard no_grad;
  Moments moments;
  const int64_t count = values.numel();
  if (count == 0) return moments;
  // Two passes: the squares are of what is left after the mean, so nothing cancels.
  const torch::Tensor wide = values.to(torch::kFloat64);
  moments.mean = wide.sum().item<double>() / static_cast<double>(count);
  if (count > 1)
    moments.variance = (wide - moments.mean).square().sum().item<double>() / static_cast<double>(count - 1);
  return moments;
}

torch::Tensor Whiten(const torch::Tensor& values, const Moments& moments, bool shift_mean) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor whitened = (values - moments.mean) * (1 / std::sqrt(moments.variance + 1e-8));
  return shift_mean ? whitened : whitened + moments.mean;
}

double ExplainedVariance(const torch::Tensor& values, const torch::Tensor& returns) {
  const torch::NoGradGuard no_grad;
  if (returns.numel() < 2) return 0;
  const torch::Tensor wide = returns.to(torch::kFloat64);
  const double variance = MomentsOf(wide).variance;
  // Returns are sums of rewards and values in float32, and rounded as the largest of them.
  const double largest = std::max(returns.abs().max().item<double>(), values.abs().max().item<double>());
  if (!(std::sqrt(variance) > 1e-5 * largest)) return 0;
  return 1 - MomentsOf(wide - values.to(torch::kFloat64)).variance / variance;
}

}  // namespace rlhf::learner
