// Gradients of many micro-batches, summed in float32 into flat buckets of fixed order, and all-reduced bucket by bucket
// while the last backward runs.
//
// Sums only: losses are divided by their global denominators before backward, so the result does not depend on
// micro-batches or ranks. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "learner/collective.h"
#include "learner/share.h"
#include "model/libtorch.h"

namespace rlhf::learner {

class GradientBuckets {
 public:
  // parameters: leaves that require gradients, any float dtype, one device; in buckets as BucketsOf makes them.
  explicit GradientBuckets(std::vector<torch::Tensor> parameters, int64_t bucket_bytes = kBucketBytes);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // From now on only this share of every bucket is summed over ranks (a reduce-scatter), for a group of so many ranks.
  void SetShare(const Share& share);
  // Zeroes the sums.
  void Begin();
  // Adds the gradients of a scalar loss. With last, every bucket's sum over ranks is started as soon as all its
  // parameters are done, in bucket order. A parameter that the loss does not reach counts as zero.
  absl::Status Backward(const torch::Tensor& loss, bool last, Collective* collective);
  // A rank without a micro-batch in this update takes part in the sums.
  absl::Status ReduceOnly(Collective* collective);
  // Blocks until all sums are done. Unavailable when a rank died.
  absl::Status Wait();
  // float32 views into the buckets: of each parameter, in their order; with a share, of its segments, flat, bucket by
  // bucket.
  const std::vector<torch::Tensor>& gradients() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace rlhf::learner
