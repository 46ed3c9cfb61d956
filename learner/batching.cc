#include "learner/batching.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/split_mix64.h"
#include "model/split_by_tokens.h"

namespace rlhf::learner {
std::vector<size_t> Permutation(size_t n, uint64_t seed, uint64_t stream, uint64_t epoch) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  constexpr auto kMix = SplitMix64::Mix;
  constexpr uint64_t kStep = SplitMix64::kStep;
  SplitMix64 random(kMix(kMix(kMix(seed + kStep) + stream + kStep) + epoch + kStep));
  for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  return order;
}

std::vector<size_t> ItemsOf(size_t n, uint64_t seed, uint64_t stream, int64_t cursor, int64_t count) {
  std::vector<size_t> items;
  if (n == 0) return items;
  items.reserve(static_cast<size_t>(count));
  auto epoch = static_cast<uint64_t>(cursor) / n;
  auto at = static_cast<size_t>(static_cast<uint64_t>(cursor) % n);
  while (static_cast<int64_t>(items.size()) < count) {
    const std::vector<size_t> order = Permutation(n, seed, stream, epoch);
    for (; at < n && static_cast<int64_t>(items.size()) < count; ++at) items.push_back(order[at]);
    at = 0;
    ++epoch;
  }
  return items;
}

std::vector<size_t> RankShare(const std::vector<size_t>& items, int rank, int world_size) {
  const size_t begin = items.size() * static_cast<size_t>(rank) / static_cast<size_t>(world_size);
  const size_t end = items.size() * static_cast<size_t>(rank + 1) / static_cast<size_t>(world_size);
  return {items.begin() + static_cast<std::ptrdiff_t>(begin), items.begin() + static_cast<std::ptrdiff_t>(end)};
}

std::vector<std::vector<size_t>> MicroBatches(const std::vector<size_t>& items, const std::vector<int64_t>& lengths,
                                              int64_t max_tokens) {
  std::vector<int64_t> of_items;
  for (const size_t item : items) of_items.push_back(lengths[item]);
  std::vector<std::vector<size_t>> groups;
  for (const auto& [begin, end] : model::SplitByTokens(of_items, max_tokens))
    groups.emplace_back(items.begin() + static_cast<std::ptrdiff_t>(begin),
                        items.begin() + static_cast<std::ptrdiff_t>(end));
  return groups;
}

}  // namespace rlhf::learner
