#include "learner/losses.h"

namespace rlhf::learner {

PolicyLossSums PolicyLoss(const torch::Tensor& new_log_probs, const torch::Tensor& old_log_probs,
                          const torch::Tensor& advantages, const torch::Tensor& weights,
                          const PolicyLossOptions& options) {
  const torch::Tensor log_ratio = new_log_probs - old_log_probs;
  const torch::Tensor ratio = log_ratio.exp();
  const torch::Tensor plain = -advantages * ratio;
  const torch::Tensor clipped = -advantages * ratio.clamp(1 - options.clip_low, 1 + options.clip_high);
  torch::Tensor losses = torch::max(plain, clipped);
  if (options.dual_clip > 1) {
    // With a negative advantage and a large ratio the loss is unbounded; this bounds it.
    losses = torch::where(advantages < 0, torch::min(losses, -advantages * options.dual_clip), losses);
  }
  if (weights.defined()) losses = losses * weights;
  PolicyLossSums sums;
  sums.loss = losses.sum();
  const torch::NoGradGuard no_grad;
  sums.clipped = (clipped > plain).to(torch::kFloat32).sum();
  // A small update moves a token by 1e-5 or so, of whose square r − 1 − log r has no digits left in float32.
  const torch::Tensor exact = log_ratio.detach().to(torch::kFloat64);
  sums.approx_kl = (torch::expm1(exact) - exact).sum();
  sums.ratio_error =
      ratio.numel() == 0 ? torch::zeros({}, ratio.options().requires_grad(false)) : (ratio.detach() - 1).abs().max();
  return sums;
}

ValueLossSums ValueLoss(const torch::Tensor& values, const torch::Tensor& old_values, const torch::Tensor& returns,
                        double clip_range) {
  const torch::Tensor clipped_values = torch::min(torch::max(values, old_values - clip_range), old_values + clip_range);
  const torch::Tensor plain = (values - returns).square();
  const torch::Tensor clipped = (clipped_values - returns).square();
  ValueLossSums sums;
  sums.loss = 0.5 * torch::max(plain, clipped).sum();
  const torch::NoGradGuard no_grad;
  sums.clipped = (clipped > plain).to(torch::kFloat32).sum();
  return sums;
}

torch::Tensor BradleyTerry(const torch::Tensor& chosen, const torch::Tensor& rejected, const torch::Tensor& margins,
                           const torch::Tensor& ties) {
  const torch::Tensor difference = chosen - rejected;
  const torch::Tensor decided = -torch::log_sigmoid(difference - margins);
  const torch::Tensor tied = -0.5 * (torch::log_sigmoid(difference) + torch::log_sigmoid(-difference));
  return torch::where(ties, tied, decided);
}

torch::Tensor ImportanceWeights(const torch::Tensor& old_log_probs, const torch::Tensor& behaviour_log_probs,
                                double maximum) {
  const torch::NoGradGuard no_grad;
  return (old_log_probs - behaviour_log_probs).exp().clamp_max(maximum);
}

}  // namespace rlhf::learner
