// How a model's trained parameters lie in flat buckets, how every bucket is divided among ranks, and who holds which
// part. Pure; the same on every rank.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model/libtorch.h"

namespace rlhf::learner {

// One of `count` equal parts of every bucket; of one part, all of it.
struct Share {
  int index = 0, count = 1;
  bool operator==(const Share& other) const { return index == other.index && count == other.count; }
};

// A run of elements of one flattened parameter and where it lies in its bucket.
struct Segment {
  size_t parameter = 0;
  int64_t begin = 0, size = 0;  // elements of the parameter
  int64_t at = 0;               // elements from the bucket's beginning
};
struct Bucket {
  std::vector<Segment> parameters;  // each from its beginning to its end
  int64_t size = 0;                 // elements
  int64_t layer = -1;               // of the model, whose weights are divided among the ranks; -1: they are held whole
};

// The most that the first bucket and the others take, in bytes of float32.
struct BucketSizes {
  int64_t first = 4 << 20, others = 4 << 20;
  // As the sums of a device's tensors are made: Gloo's on the CPU; NCCL's on CUDA, where links reach their rate with
  // larger ones, and a small first one begins early, as in PyTorch's DistributedDataParallel (Li et al. 2020).
  static BucketSizes For(torch::Device device);
  static BucketSizes Of(int64_t bytes) { return {bytes, bytes}; }
};
// Filled from the last parameter to the first (the order in which backward makes gradients), each of parameters of one
// dtype and of at most such a size; a larger parameter has one of its own. layers: of each parameter its layer, and a
// bucket has one; empty: all are held whole.
std::vector<Bucket> BucketsOf(const std::vector<torch::Tensor>& parameters, const BucketSizes& sizes = {},
                              const std::vector<int64_t>& layers = {});

// Elements of each of `count` shares; the last ones reach beyond the bucket's end where it does not divide.
int64_t ShareSize(const Bucket& bucket, int count);
// What of the bucket's parameters lies in a share, in order.
std::vector<Segment> SegmentsOf(const Bucket& bucket, const Share& share);

// held[r]: what rank r holds of one version's state, if anything. The ranks that together hold all of it, by share: one
// that has it whole, or one for each share of the same division. Empty: parts of it are lost.
std::vector<int> OwnersOf(const std::vector<std::optional<Share>>& held);

}  // namespace rlhf::learner
