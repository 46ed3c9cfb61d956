#include "learner/batching.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace rlhf::learner {
namespace {

uint64_t Mix(uint64_t z) {  // SplitMix64's finaliser
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

std::vector<size_t> Permutation(size_t n, uint64_t seed, uint64_t stream, uint64_t epoch) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15ULL;
  uint64_t state = Mix(Mix(Mix(seed + kStep) + stream + kStep) + epoch + kStep);
  for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[Mix(state += kStep) % i]);
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
  std::vector<std::vector<size_t>> groups;
  int64_t tokens = 0;
  for (const size_t item : items) {
    if (groups.empty() || tokens + lengths[item] > max_tokens) {
      groups.emplace_back();
      tokens = 0;
    }
    groups.back().push_back(item);
    tokens += lengths[item];
  }
  return groups;
}

}  // namespace rlhf::learner
