#include "learner/share.h"

#include <algorithm>
#include <map>

namespace rlhf::learner {

BucketSizes BucketSizes::For(torch::Device device) {
  return device.is_cuda() ? BucketSizes{1 << 20, 25 << 20} : BucketSizes();
}

std::vector<Bucket> BucketsOf(const std::vector<torch::Tensor>& parameters, const BucketSizes& sizes,
                              const std::vector<int64_t>& layers) {
  std::vector<Bucket> buckets;
  for (size_t left = parameters.size(); left > 0; --left) {
    const torch::Tensor& parameter = parameters[left - 1];
    const int64_t layer = layers.empty() ? -1 : layers[left - 1];
    if (buckets.empty() || buckets.back().layer != layer ||
        (buckets.back().size + parameter.numel()) * 4 > (buckets.size() == 1 ? sizes.first : sizes.others) ||
        parameters[buckets.back().parameters.back().parameter].scalar_type() != parameter.scalar_type())
      buckets.emplace_back().layer = layer;
    Bucket& bucket = buckets.back();
    bucket.parameters.push_back({left - 1, 0, parameter.numel(), bucket.size});
    bucket.size += parameter.numel();
  }
  return buckets;
}

int64_t ShareSize(const Bucket& bucket, int count) {
  return (bucket.size + count - 1) / count;
}

std::vector<Segment> SegmentsOf(const Bucket& bucket, const Share& share) {
  const int64_t size = ShareSize(bucket, share.count), first = share.index * size, last = first + size;
  std::vector<Segment> segments;
  for (const Segment& whole : bucket.parameters) {
    const int64_t begin = std::max(first, whole.at), end = std::min(last, whole.at + whole.size);
    if (begin < end) segments.push_back({whole.parameter, begin - whole.at, end - begin, begin});
  }
  return segments;
}

std::vector<int> OwnersOf(const std::vector<std::optional<Share>>& held) {
  std::map<int, std::map<int, int>> divisions;  // by count: share to its first rank
  for (size_t rank = 0; rank < held.size(); ++rank) {
    if (held[rank]) divisions[held[rank]->count].emplace(held[rank]->index, static_cast<int>(rank));
  }
  for (const auto& [count, ranks] : divisions) {
    if (static_cast<int>(ranks.size()) != count) continue;
    std::vector<int> owners;
    for (const auto& [index, rank] : ranks) owners.push_back(rank);
    return owners;
  }
  return {};
}

}  // namespace rlhf::learner
