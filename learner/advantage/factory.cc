#include "learner/advantage/gae.h"
#include "learner/advantage/group.h"
#include "learner/advantage/reinforce_baseline.h"

namespace rlhf::learner {

std::unique_ptr<AdvantageEstimator> MakeAdvantageEstimator(v1::AdvantageEstimator which) {
  switch (which) {
    case v1::RLOO:
      return std::make_unique<RlooEstimator>();
    case v1::GRPO:
      return std::make_unique<GrpoEstimator>(true);
    case v1::GRPO_NO_STD:
      return std::make_unique<GrpoEstimator>(false);
    case v1::REINFORCE_BASELINE:
      return std::make_unique<ReinforceBaselineEstimator>();
    default:
      return std::make_unique<GaeEstimator>();
  }
}

}  // namespace rlhf::learner
