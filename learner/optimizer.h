// AdamW with float32 master weights and moments, over LibTorch's fused kernel; learning-rate schedules; gradient
// clipping. Of all parameters, or of a rank's share of them (ZeRO).
//
// Sources: Loshchilov and Hutter 2019, the update equals torch.optim.AdamW; Rajbhandari et al. 2020 ("ZeRO").
// Weight decay skips norms and biases (tensors of one dimension). Not thread-safe; calls that take a Collective are
// made by every rank of it, and are Unavailable when it broke.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/checkpoint.h"
#include "learner/collective.h"
#include "learner/share.h"
#include "model/libtorch.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

// The rate of update `update` (from 0) of `total`: linear warm-up from lr/warmup, then constant, linear or cosine to
// final_ratio · lr at the last update.
double LearningRateAt(const v1::OptimizerSpec& spec, int64_t update, int64_t total);

class AdamW {
 public:
  // spec is complete. The parameters are updated in place; when they are not float32, masters are kept beside them.
  AdamW(NamedTensors parameters, const v1::OptimizerSpec& spec, int64_t total_updates);
  // Of a share of these buckets of the parameters (contiguous); none before TakeShare. Of buckets of layers masters are
  // kept in float32 too, and their parameters need not be there (DividedWeights).
  AdamW(NamedTensors parameters, std::vector<Bucket> buckets, const v1::OptimizerSpec& spec, int64_t total_updates);

  // As new: masters of the parameters as they are, moments 0. Of an optimizer that was made with buckets.
  void TakeShare(const Share& share);
  const Share& share() const { return share_; }  // {0, 1}: all
  // Hands the state of `owners.size()` shares, share s held by rank owners[s] of the group, out anew: this rank has the
  // group's share of its own rank afterwards, and the parameters whole. Failing, it holds what it held.
  absl::Status Reshare(const std::vector<int>& owners, Collective* collective);

  // L2 norm over the gradients (float32, equal on all ranks), or over those of a share. Not finite when any is not.
  static double Norm(const std::vector<torch::Tensor>& gradients);
  static double SquaredNorm(const std::vector<torch::Tensor>& gradients);
  // One update of the share; gradients are of its segments, flat, bucket by bucket. `norm` is of all gradients: they
  // are scaled in place by min(1, max_grad_norm / (norm + 1e-6)) when max_grad_norm > 0.
  void Step(const std::vector<torch::Tensor>& gradients, double norm);
  // Brings the other shares' parameters from their ranks, after Step or RestoreSnapshot.
  absl::Status GatherParameters(Collective* collective);
  // The bucket's parameters from the masters of all ranks: flat, in their dtype, at least the bucket's size.
  absl::StatusOr<torch::Tensor> Gather(size_t bucket, Collective* collective) const;
  int64_t updates() const { return updates_; }
  double learning_rate() const { return LearningRateAt(spec_, updates_, total_updates_); }  // of the next update

  // Everything that shapes the future, by name ("exp_avg/…", "exp_avg_sq/…", "master/…"), with the live pieces of it
  // that this rank holds.
  State state() const;
  // The pieces of a parameter itself that this rank holds: all of it, and masters that stand for it.
  std::vector<StateTensor::Piece> ParameterPieces(size_t parameter) const;
  // Every tensor of it, whole, brought together bucket by bucket; of a share, on all ranks.
  absl::Status VisitState(Collective* collective, const StateVisitor& visitor) const;
  // Every parameter, whole, by its name; in the same way.
  absl::Status VisitParameters(Collective* collective, const StateVisitor& visitor) const;
  void set_updates(int64_t updates) { updates_ = updates; }

  // Copies of parameters, state and counter, and back; of a share, of its parameters alone, and where it is one of
  // several on a device, in the host's memory. Taken before each step; a refused step restores it.
  void TakeSnapshot();
  void RestoreSnapshot();

 private:
  enum Kind : size_t { kMaster, kExpAvg, kExpAvgSq, kKinds };
  static constexpr std::array<const char*, kKinds> kNames = {"master", "exp_avg", "exp_avg_sq"};
  // Of a share: flat float32 tensors [ShareSize], by bucket. Masters of float32 parameters are the parameters:
  // undefined.
  using Flats = std::array<std::vector<torch::Tensor>, kKinds>;

  torch::Tensor& parameter(size_t i) { return parameters_[i].second; }
  const torch::Tensor& parameter(size_t i) const { return parameters_[i].second; }
  torch::Tensor Flattened(const Segment& segment) const;  // a view of the parameter's elements
  bool HasMaster(const Bucket& bucket) const;
  // False while the bucket's parameters are divided: their values are in masters alone.
  bool IsThere(const Bucket& bucket) const;
  Flats Zeros(const Share& share) const;
  void Adopt(const Share& share, Flats flats);
  void CopyMastersToParameters();

  NamedTensors parameters_;
  std::vector<Bucket> buckets_;  // empty: state of whole parameters
  Share share_;
  Flats flats_;
  v1::OptimizerSpec spec_;
  int64_t total_updates_;
  int64_t updates_ = 0;
  // What is updated: whole parameters, or a share's segments. masters_: the parameters themselves when they are
  // float32.
  std::vector<Segment> segments_;
  std::vector<size_t> bucket_of_;  // of each segment
  std::vector<torch::Tensor> masters_, exp_avg_, exp_avg_sq_;
  std::vector<torch::Tensor> snapshot_;
  int64_t snapshot_updates_ = 0;
};

}  // namespace rlhf::learner
