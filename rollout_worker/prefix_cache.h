// Which prompts' keys and values are kept after their samples ended, for prompts that begin with the same tokens (a
// system prompt, a conversation's earlier turns): the least recently used go first.
//
// Knows tokens and slots only; what the slots hold is the engine's. Not thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <vector>

namespace rlhf::rollout {

// How many tokens two sequences have in common at their beginning.
int64_t CommonPrefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b);

class PrefixCache {
 public:
  // Keeps at most `most` prompts, in the slots from first_slot on.
  PrefixCache(int first_slot, int most);

  struct Match {
    int slot = -1;  // -1: none
    int64_t tokens = 0;
  };
  // The kept prompt that shares most with `prompt`. Use makes it the most recent one.
  Match Find(const std::vector<int32_t>& prompt) const;
  void Use(int slot);
  // Keeps a prompt; the caller has made room (full) and puts its keys and values into the returned slot.
  int Insert(const std::vector<int32_t>& prompt);
  bool full() const { return free_.empty(); }
  bool empty() const { return kept_.empty(); }
  // Forgets the least recently used one and returns its slot; nullopt when none is kept.
  std::optional<int> EvictOldest();

 private:
  struct Kept {
    std::vector<int32_t> prompt;
    int slot;
  };
  std::list<Kept> kept_;  // most recent first
  std::vector<int> free_;
};

}  // namespace rlhf::rollout
