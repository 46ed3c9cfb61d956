// Which prompts get slots and memory, what of their beginnings is there already, and what becomes of the slot of a
// sample that ended.
#include <algorithm>
#include <optional>
#include <utility>

#include "rollout_worker/engine_impl.h"

namespace rlhf::rollout {
namespace {

// A shorter beginning is computed again rather than copied or waited for.
constexpr int64_t kLeastShared = 16;
// How many times prefill_tokens a pass may compute when no running sequence waits for it.
constexpr int64_t kIdlePrefill = 8;

}  // namespace

std::vector<int> Engine::FreeSlots() const {
  std::vector<bool> taken(slots_.size());
  for (size_t slot = 0; slot < slots_.size(); ++slot) taken[slot] = slots_[slot] != nullptr;
  for (const auto& group : waiting_) {
    for (const int slot : group->slots) taken[static_cast<size_t>(slot)] = true;
  }
  std::vector<int> free;
  for (int slot = options_.slots - 1; slot >= 0; --slot) {
    if (!taken[static_cast<size_t>(slot)]) free.push_back(slot);
  }
  return free;
}

// What is kept for prompts to come gives way to what waits now.
bool Engine::Reserve(int slot, int64_t room) {
  while (!cache_.Reserve(slot, room)) {
    const std::optional<int> oldest = prefixes_.EvictOldest();
    if (!oldest) return false;
    cache_.Release(*oldest);
  }
  return true;
}

// Where the longest beginning of a prompt lies, computed by the present weights.
PrefixCache::Match Engine::FindPrefix(const std::vector<int32_t>& prompt) const {
  if (options_.shared_prefixes == 0) return {};
  PrefixCache::Match best = prefixes_.Find(prompt);
  for (const auto& running : slots_) {
    if (!running || running->weights != weights_) continue;
    const int64_t tokens = CommonPrefix(running->prompt_tokens, prompt);
    if (tokens > best.tokens) best = {running->slot, tokens};
  }
  // The logits after a prompt are nowhere kept, so its last token is computed in any case.
  best.tokens = std::min(best.tokens, static_cast<int64_t>(prompt.size()) - 1);
  return best.tokens < kLeastShared ? PrefixCache::Match() : best;
}

void Engine::TakePrefix(const Group& group) {
  const int slot = group.slots.front();
  cache_.Reset(slot);
  const PrefixCache::Match prefix = FindPrefix(group.prompt_tokens);
  if (prefix.slot < 0) return;
  cache_.CopyPrefix(prefix.slot, slot, prefix.tokens);
  cache_.SetLength(slot, prefix.tokens);
  ++counters_.prefix_hits;
  counters_.prefix_tokens += prefix.tokens;
}

// Whether a prompt that this pass computes to its end has more of the group's beginning than is there by now.
bool Engine::AwaitsPrefix(const Group& group, const Pass& pass) const {
  if (options_.shared_prefixes == 0 || pass.prompts.empty()) return false;
  const int64_t there = FindPrefix(group.prompt_tokens).tokens;
  const size_t first = pass.inputs.size() - pass.prompts.size();
  for (size_t i = 0; i < pass.prompts.size(); ++i) {
    const Group& other = *pass.prompts[i];
    const int64_t computed = cache_.length(other.slots.front()) + static_cast<int64_t>(pass.inputs[first + i].size());
    if (computed == static_cast<int64_t>(other.prompt_tokens.size()) &&
        CommonPrefix(other.prompt_tokens, group.prompt_tokens) >= there + kLeastShared)
      return true;
  }
  return false;
}

void Engine::Admit(Pass* pass) {
  std::vector<int> free = FreeSlots();
  int64_t budget = options_.prefill_tokens * (pass->slots.empty() ? kIdlePrefill : 1);
  const auto reserve = [&](Group* group) {
    // More slots than samples: some were revoked while the prompt was computed.
    if (free.empty() || group->slots.size() >= group->waiting.size() || !Reserve(free.back(), group->room))
      return false;
    group->slots.push_back(free.back());
    free.pop_back();
    return true;
  };
  // What came later does not overtake: it could keep a long sequence waiting forever. What was admitted goes on.
  bool full = false;
  for (auto& group : waiting_) {
    if (budget == 0) break;
    if (group->slots.empty()) {
      if (full || AwaitsPrefix(*group, *pass)) continue;
      prefixes_.Use(FindPrefix(group->prompt_tokens).slot);  // the last to give way
      if (!reserve(group.get())) {
        full = true;
        continue;
      }
      TakePrefix(*group);
    }
    while (!full && reserve(group.get())) {
    }
    if (group->slots.size() < group->waiting.size()) full = true;
    const int slot = group->slots.front();
    const auto next = group->prompt_tokens.begin() + cache_.length(slot);
    const int64_t count = std::min<int64_t>(budget, group->prompt_tokens.end() - next);
    pass->inputs.emplace_back(next, next + count);
    pass->slots.push_back(slot);
    pass->prompts.push_back(group.get());
    counters_.prompt_tokens += count;
    budget -= count;
  }
}

void Engine::StartAdmitted(std::vector<Running*>* sequences, std::vector<torch::Tensor>* logits) {
  for (auto& group : waiting_) {
    if (!group->prompt_logits.defined()) continue;
    const auto length = static_cast<int64_t>(group->prompt_tokens.size());
    const size_t started = std::min(group->slots.size(), group->waiting.size());
    for (size_t i = 0; i < started; ++i) {
      const int slot = group->slots[i];
      if (i > 0) {
        cache_.CopyPrefix(group->slots.front(), slot, length);
        cache_.SetLength(slot, length);
      }
      Start(*group, static_cast<int>(i), slot);
      sequences->push_back(slots_[slot].get());
      logits->push_back(group->prompt_logits);
    }
    for (size_t i = started; i < group->slots.size(); ++i) cache_.Release(group->slots[i]);
    waiting_samples_ -= static_cast<int>(started);
    group->waiting.erase(group->waiting.begin(), group->waiting.begin() + static_cast<int64_t>(started));
    // The rest of its samples come when there is room again; its prompt may be gone by then, so it is prefilled anew.
    group->prompt_logits = torch::Tensor();
    group->slots.clear();
  }
  std::erase_if(waiting_, [](const auto& group) { return group->waiting.empty(); });
}

void Engine::Start(Group& group, int sample, int slot) {
  auto sequence = std::make_unique<Running>();
  sequence->lease = std::make_shared<const v1::PromptLease>(group.lease);
  const auto& stops = group.lease.sampling().stop();
  sequence->stops = StopTexts({stops.begin(), stops.end()});
  sequence->prompt_tokens = group.prompt_tokens;
  sequence->sample = group.waiting[sample];
  sequence->sampling = group.sampling;
  sequence->max_new_tokens = group.max_new_tokens;
  sequence->slot = slot;
  sequence->weights = weights_;
  sequence->version_low = sequence->version_high = version_;
  sequence->noise.seed = group.lease.seed();
  sequence->noise.stream = group.lease.stream();
  sequence->noise.step = static_cast<uint32_t>(group.lease.step());
  sequence->noise.ordinal = static_cast<uint32_t>(group.lease.ordinal());
  sequence->noise.index = static_cast<uint32_t>(sequence->sample.index());
  slots_[slot] = std::move(sequence);
  ++running_;
}

// The slot's sample ended: its prompt stays for prompts that begin alike, unless it is held elsewhere too.
void Engine::Retire(int slot) {
  const Running& ended = *slots_[slot];
  const auto size = static_cast<int64_t>(ended.prompt_tokens.size());
  if (options_.shared_prefixes > 0 && ended.weights == weights_ && size > kLeastShared) {
    const PrefixCache::Match kept = prefixes_.Find(ended.prompt_tokens);
    const bool held = kept.tokens == size || std::any_of(slots_.begin(), slots_.end(), [&](const auto& other) {
                        return other && other->slot != slot && other->weights == weights_ &&
                               CommonPrefix(other->prompt_tokens, ended.prompt_tokens) == size;
                      });
    if (kept.tokens == size) prefixes_.Use(kept.slot);
    if (!held) {
      if (prefixes_.full()) cache_.Release(*prefixes_.EvictOldest());
      cache_.Move(slot, prefixes_.Insert(ended.prompt_tokens));
    }
  }
  Vacate(slot);
}

void Engine::Vacate(int slot) {
  slots_[slot].reset();
  cache_.Release(slot);
  --running_;
}

}  // namespace rlhf::rollout
