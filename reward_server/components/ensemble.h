// Several reward models as one score: where they disagree, none of them should be trusted.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "reward_server/components/interface.h"

namespace rlhf::reward {

// Mean, minimum, or mean − c·std (Bessel's); at least one member.
double CombineEnsemble(v1::EnsembleRule rule, double coefficient, const std::vector<double>& members);

class Ensemble final : public Component {
 public:
  Ensemble(v1::EnsembleRule rule, double coefficient, std::vector<std::unique_ptr<Component>> members)
      : rule_(rule), coefficient_(coefficient), members_(std::move(members)) {}
  // A sample that a member cannot score has that member's failure.
  std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) override;
  const std::vector<std::vector<double>>* parts() const override { return &parts_; }

 private:
  const v1::EnsembleRule rule_;
  const double coefficient_;
  const std::vector<std::unique_ptr<Component>> members_;
  std::vector<std::vector<double>> parts_;
};

}  // namespace rlhf::reward
