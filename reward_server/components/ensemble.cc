#include "reward_server/components/ensemble.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace rlhf::reward {

double CombineEnsemble(v1::EnsembleRule rule, double coefficient, const std::vector<double>& members) {
  const auto n = static_cast<double>(members.size());
  double mean = 0, squares = 0;
  for (const double value : members) mean += value / n;
  for (const double value : members) squares += (value - mean) * (value - mean);
  switch (rule) {
    case v1::ENSEMBLE_MIN:
      return *std::min_element(members.begin(), members.end());
    case v1::ENSEMBLE_MEAN_MINUS_STD:
      return mean - coefficient * (members.size() > 1 ? std::sqrt(squares / (n - 1)) : 0);
    default:
      return mean;
  }
}

std::vector<absl::StatusOr<double>> Ensemble::Score(const std::vector<const v1::Sample*>& samples) {
  parts_.assign(members_.size(), std::vector<double>(samples.size(), 0));
  std::vector<absl::StatusOr<double>> out(samples.size(), 0.0);
  for (size_t m = 0; m < members_.size(); ++m) {
    const std::vector<absl::StatusOr<double>> values = members_[m]->Score(samples);
    for (size_t i = 0; i < samples.size(); ++i) {
      if (values[i].ok())
        parts_[m][i] = *values[i];
      else
        out[i] = values[i].status();  // without one member there is no score
    }
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    if (!out[i].ok()) continue;
    std::vector<double> members;
    for (const std::vector<double>& part : parts_) members.push_back(part[i]);
    out[i] = CombineEnsemble(rule_, coefficient_, members);
  }
  return out;
}

}  // namespace rlhf::reward
