// Estimators that compare the samples of one prompt, without a critic: every token of a sample has the sample's
// advantage.
#pragma once

#include "learner/advantage/interface.h"

namespace rlhf::learner {

// Leave-one-out baseline (Ahmadian et al. 2024).
class RlooEstimator final : public AdvantageEstimator {
 public:
  bool needs_critic() const override { return false; }
  Advantages Compute(const AdvantageInputs& inputs) const override;
};

// Return minus the group's mean, divided by its standard deviation (Bessel's) + 1e-4 (Shao et al. 2024), or not (Liu et
// al. 2025).
class GrpoEstimator final : public AdvantageEstimator {
 public:
  explicit GrpoEstimator(bool divide) : divide_(divide) {}
  bool needs_critic() const override { return false; }
  Advantages Compute(const AdvantageInputs& inputs) const override;

 private:
  const bool divide_;
};

}  // namespace rlhf::learner
