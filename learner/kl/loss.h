// The distance to the reference as a part of the policy's loss (KlSpec.form) instead of the rewards. Pure.
#pragma once

#include "model/libtorch.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

// False also where a job from before the field says nothing: the distance counts in the rewards.
bool KlCountsInLoss(const v1::KlSpec& spec);

// Σ over response tokens of an estimate of the KL (Schulman 2020, "Approximating KL divergence"): scalar, with gradient
// through new_log_probs alone. Both float32 [n], on one device. d = reference − new; KL_LOSS_K2: ½ d²; KL_LOSS_K3:
// exp(d) − d − 1.
torch::Tensor KlLossSum(const torch::Tensor& new_log_probs, const torch::Tensor& reference_log_probs, v1::KlForm form);

}  // namespace rlhf::learner
