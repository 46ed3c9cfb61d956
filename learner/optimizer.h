// AdamW with float32 master weights and moments, over LibTorch's fused kernel; learning-rate schedules; gradient
// clipping.
//
// Source: Loshchilov and Hutter 2019; the update equals torch.optim.AdamW. Weight decay skips norms and biases (tensors
// of one dimension). Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model/libtorch.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

// The rate of update `update` (from 0) of `total`: linear warm-up from lr/warmup, then constant, linear or cosine to
// final_ratio · lr at the last update.
double LearningRateAt(const v1::OptimizerSpec& spec, int64_t update, int64_t total);

class AdamW {
 public:
  using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;
  // spec is complete. The parameters are updated in place; when they are not float32, masters are kept beside them.
  AdamW(NamedTensors parameters, const v1::OptimizerSpec& spec, int64_t total_updates);

  // L2 norm over all gradients (float32, equal on all ranks). Not finite when any is not.
  static double Norm(const std::vector<torch::Tensor>& gradients);
  // One update. Gradients are scaled in place by min(1, max_grad_norm / (norm + 1e-6)) when max_grad_norm > 0.
  void Step(const std::vector<torch::Tensor>& gradients, double norm);
  int64_t updates() const { return updates_; }
  double learning_rate() const { return LearningRateAt(spec_, updates_, total_updates_); }  // of the next update

  // Everything that shapes the future, by name ("exp_avg/…", "exp_avg_sq/…", "master/…"): live tensors.
  NamedTensors state() const;
  void set_updates(int64_t updates) { updates_ = updates; }

  // Copies of parameters, state and counter, and back. Taken before each step; a refused step restores it.
  void TakeSnapshot();
  void RestoreSnapshot();

 private:
  NamedTensors parameters_;
  v1::OptimizerSpec spec_;
  int64_t total_updates_;
  int64_t updates_ = 0;
  std::vector<torch::Tensor> masters_, exp_avg_,
      exp_avg_sq_;  // masters_: the parameters themselves when they are float32
  std::vector<torch::Tensor> snapshot_;
  int64_t snapshot_updates_ = 0;
};

}  // namespace rlhf::learner
