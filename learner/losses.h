// Losses as sums over packed rows; callers divide by global denominators. All tensors float32, one entry a response
// token (or a pair), on one device.
#pragma once
#include "model/libtorch.h"

namespace rlhf::learner {

struct PolicyLossOptions {
  double clip_low = 0.2, clip_high = 0.2;
  double dual_clip = 0;  // 0: off; else > 1 (Ye et al. 2020)
};
struct PolicyLossSums {
  torch::Tensor loss;  // scalar with gradient: Σ weight · max(−A r, −A clip(r, 1 − low, 1 + high)), r = exp(new − old)
  torch::Tensor clipped;      // scalar: number of rows where the clipped branch won
  torch::Tensor approx_kl;    // float64 scalar: Σ (r − 1 − log r), k3 of old against new (Schulman 2020)
  torch::Tensor ratio_error;  // scalar: max |r − 1|; 0 without rows
};
// Schulman et al. 2017, equation 7, with truncated importance weights (detached) for the sampler's mismatch. weights
// may be undefined: 1.
PolicyLossSums PolicyLoss(const torch::Tensor& new_log_probs, const torch::Tensor& old_log_probs,
                          const torch::Tensor& advantages, const torch::Tensor& weights,
                          const PolicyLossOptions& options);

struct ValueLossSums {
  torch::Tensor loss;     // scalar with gradient: Σ ½ max((v − R)², (clip(v, v_old ± range) − R)²)
  torch::Tensor clipped;  // scalar: number of rows where the clipped branch won
};
ValueLossSums ValueLoss(const torch::Tensor& values, const torch::Tensor& old_values, const torch::Tensor& returns,
                        double clip_range);

// Bradley and Terry 1952: per pair −log σ(chosen − rejected − margin); ties are half-labels: −½ log σ(d) − ½ log σ(−d).
// All [P]; ties is bool.
torch::Tensor BradleyTerry(const torch::Tensor& chosen, const torch::Tensor& rejected, const torch::Tensor& margins,
                           const torch::Tensor& ties);

// exp(old − behaviour), at most `maximum`, detached.
torch::Tensor ImportanceWeights(const torch::Tensor& old_log_probs, const torch::Tensor& behaviour_log_probs,
                                double maximum);

}  // namespace rlhf::learner
