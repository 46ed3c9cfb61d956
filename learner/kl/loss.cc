#include "learner/kl/loss.h"

namespace rlhf::learner {

bool KlCountsInLoss(const v1::KlSpec& spec) {
  return spec.form() == v1::KL_LOSS_K2 || spec.form() == v1::KL_LOSS_K3;
}

torch::Tensor KlLossSum(const torch::Tensor& new_log_probs, const torch::Tensor& reference_log_probs, v1::KlForm form) {
  const torch::Tensor d = reference_log_probs.detach() - new_log_probs;
  if (form == v1::KL_LOSS_K2) return 0.5 * d.square().sum();
  // Of tokens that hardly moved exp(d) − 1 has no digits left; expm1 has.
  return (torch::expm1(d) - d).sum();
}

}  // namespace rlhf::learner
