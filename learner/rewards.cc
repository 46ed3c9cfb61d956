#include "learner/rewards.h"

#include <cmath>

#include "common/status_util.h"

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

absl::StatusOr<Moments> GlobalMoments(const torch::Tensor& values, Collective* collective) {
  const torch::NoGradGuard no_grad;
  // Two passes: the squares are of what is left after the mean, so nothing cancels.
  torch::Tensor sums = torch::zeros({2}, torch::kFloat64);
  sums[0] = values.to(torch::kFloat64).sum();
  sums[1] = static_cast<double>(values.numel());
  RLHF_RETURN_IF_ERROR(collective->AllReduceSum(sums));
  Moments moments;
  moments.count = static_cast<int64_t>(sums[1].item<double>());
  if (moments.count == 0) return moments;
  moments.mean = sums[0].item<double>() / static_cast<double>(moments.count);
  torch::Tensor squares = (values.to(torch::kFloat64) - moments.mean).square().sum().reshape({1});
  RLHF_RETURN_IF_ERROR(collective->AllReduceSum(squares));
  if (moments.count > 1) moments.variance = squares.item<double>() / static_cast<double>(moments.count - 1);
  return moments;
}

torch::Tensor Whiten(const torch::Tensor& values, const Moments& moments, bool shift_mean) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor whitened = (values - moments.mean) * (1 / std::sqrt(moments.variance + 1e-8));
  return shift_mean ? whitened : whitened + moments.mean;
}

}  // namespace rlhf::learner
