// Gradients of many micro-batches, summed in float32 into flat buckets of fixed order, and over ranks bucket by bucket
// while a backward runs. A parameter's own gradient is freed as soon as it is in its bucket.
//
// Two ways. Whole: every rank holds the sums of all parameters, and they are all-reduced during the last backward. A
// share (Rajbhandari et al. 2020, "ZeRO", stage 2): every backward's buckets are reduce-scattered as they fill and
// freed, and each rank holds the sums of its own share alone, and no more than kBucketsInFlight buckets besides those
// that fill: a rank's memory for gradients does not depend on the model's size but by its share, for the traffic of a
// reduction a micro-batch.
//
// Sums only: losses are divided by their global denominators before backward, so the result does not depend on
// micro-batches or ranks. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "learner/collective.h"
#include "learner/share.h"
#include "model/libtorch.h"

namespace rlhf::learner {

inline constexpr size_t kBucketsInFlight = 2;

class GradientBuckets {
 public:
  // parameters: leaves that require gradients, any float dtype, one device; in buckets as BucketsOf makes them. One
  // object a leaf at a time. Whole, until SetShare.
  explicit GradientBuckets(std::vector<torch::Tensor> parameters, const BucketSizes& sizes = {});
  GradientBuckets(std::vector<torch::Tensor> parameters, std::vector<Bucket> layout);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // From now on only this share of every bucket is summed over ranks and held, for a group of so many ranks.
  void SetShare(const Share& share);
  // Whether every backward is reduced, not the last alone: then all ranks call Backward or ReduceOnly equally often.
  bool reduces_each() const;
  // Zeroes the sums. Without a share they are allocated the first time.
  void Begin();
  // Adds the gradients of a scalar loss. With last, or where each is reduced, every bucket's sum over ranks is started
  // as soon as all its parameters are done, in bucket order. A parameter that the loss does not reach counts as zero.
  absl::Status Backward(const torch::Tensor& loss, bool last, Collective* collective);
  // A rank without a micro-batch takes part in the sums; `during` does what else a backward does with the group.
  absl::Status ReduceOnly(Collective* collective, const std::function<void()>& during = nullptr);
  // For a backward in which ranks do more together than sum: sums are started here alone, of all buckets before this
  // one, and at the end of the backward, so that all ranks start them at the same places.
  void StartOnlyWhenTold();
  void StartBefore(size_t bucket);
  // Blocks until all sums are done. Unavailable when a rank died.
  absl::Status Wait();
  // float32 views into the sums: of each parameter, in their order; with a share, of its segments, flat, bucket by
  // bucket.
  const std::vector<torch::Tensor>& gradients() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace rlhf::learner
