// Generalised advantage estimation (Schulman et al. 2016, equation 16), with a critic.
#pragma once

#include "learner/advantage/interface.h"

namespace rlhf::learner {

class GaeEstimator final : public AdvantageEstimator {
 public:
  bool needs_critic() const override { return true; }
  Advantages Compute(const AdvantageInputs& inputs) const override;
};

}  // namespace rlhf::learner
