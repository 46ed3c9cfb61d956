#include "rollout_worker/prefix_cache.h"

#include <algorithm>

namespace rlhf::rollout {

int64_t CommonPrefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

PrefixCache::PrefixCache(int first_slot, int most) {
  for (int i = most - 1; i >= 0; --i) free_.push_back(first_slot + i);
}

PrefixCache::Match PrefixCache::Find(const std::vector<int32_t>& prompt) const {
  Match best;
  for (const Kept& kept : kept_) {
    if (const int64_t tokens = CommonPrefix(kept.prompt, prompt); tokens > best.tokens) best = {kept.slot, tokens};
  }
  return best;
}

void PrefixCache::Use(int slot) {
  const auto it = std::find_if(kept_.begin(), kept_.end(), [slot](const Kept& kept) { return kept.slot == slot; });
  if (it != kept_.end()) kept_.splice(kept_.begin(), kept_, it);
}

int PrefixCache::Insert(const std::vector<int32_t>& prompt) {
  const int slot = free_.back();
  free_.pop_back();
  kept_.push_front({prompt, slot});
  return slot;
}

std::optional<int> PrefixCache::EvictOldest() {
  if (kept_.empty()) return std::nullopt;
  const int slot = kept_.back().slot;
  kept_.pop_back();
  free_.push_back(slot);
  return slot;
}

}  // namespace rlhf::rollout
