// From scores to per-token rewards, and whitening. Pure.
#pragma once

#include <vector>

#include "model/libtorch.h"

namespace rlhf::learner {

// Rewards of packed response tokens [N] (float32): −β · (old − reference) at each, plus a sample's score at its last
// token. counts: tokens of each sample (≥ 1).
torch::Tensor TokenRewards(const torch::Tensor& old_log_probs, const torch::Tensor& reference_log_probs,
                           const std::vector<int64_t>& counts, const std::vector<double>& scores,
                           double kl_coefficient);

struct Moments {
  double mean = 0;
  double variance = 0;  // with Bessel's correction, as TRL's masked_whiten; 0 of fewer than two values
};
// Of a whole batch's values, which every rank holds.
Moments MomentsOf(const torch::Tensor& values);
// (x − mean) · rsqrt(variance + 1e-8), plus the mean again when shift_mean is false.
torch::Tensor Whiten(const torch::Tensor& values, const Moments& moments, bool shift_mean = true);

// 1 − Var[returns − values] / Var[returns] of packed tokens: at most 1, and below 0 of a critic that is worse than the
// returns' mean. 0 where the returns do not vary, or by no more than rounding: there is nothing to explain.
double ExplainedVariance(const torch::Tensor& values, const torch::Tensor& returns);

}  // namespace rlhf::learner
