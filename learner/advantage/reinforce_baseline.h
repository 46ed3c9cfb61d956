// REINFORCE++ (Hu et al. 2025, arXiv 2501.03262), without a critic: a token's advantage is the sum of the rewards from
// it on, which with KL_REWARD is the score less β times the KL of this and later tokens, minus the batch's mean return.
// The paper's normalisation over the batch's tokens is PpoSpec.whiten_advantages, the default; after it the baseline no
// longer shows.
#pragma once

#include "learner/advantage/interface.h"

namespace rlhf::learner {

class ReinforceBaselineEstimator final : public AdvantageEstimator {
 public:
  bool needs_critic() const override { return false; }
  Advantages Compute(const AdvantageInputs& inputs) const override;
};

}  // namespace rlhf::learner
