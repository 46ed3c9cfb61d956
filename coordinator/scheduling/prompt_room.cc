#include "coordinator/scheduling/prompt_room.h"

#include <algorithm>

namespace rlhf::coordinator {

bool PromptRoom::Refuse(const std::string& worker, size_t prompt, std::string why, int64_t needs) {
  Worker& refuses = workers_[worker];
  if (!refuses.refused.try_emplace(prompt, Refusal{std::move(why), needs}).second) return false;
  if (needs > 0) refuses.by_needs.emplace(needs, prompt);
  return true;
}

bool PromptRoom::HasNow(const std::string& worker, int64_t bytes) {
  const auto it = workers_.find(worker);
  if (it == workers_.end()) return false;
  Worker& refuses = it->second;
  const auto end = std::find_if(refuses.by_needs.begin(), refuses.by_needs.end(),
                                [bytes](const auto& need) { return need.first > bytes; });
  if (end == refuses.by_needs.begin()) return false;
  for (auto need = refuses.by_needs.begin(); need != end; ++need) refuses.refused.erase(need->second);
  refuses.by_needs.erase(refuses.by_needs.begin(), end);
  refuses.looked_to = {0, 0, 0};
  refuses.fits.clear();
  if (refuses.refused.empty()) workers_.erase(it);
  return true;
}

void PromptRoom::Forget(const std::string& worker) {
  workers_.erase(worker);
}

bool PromptRoom::Fits(const std::string& worker, size_t prompt) const {
  const auto it = workers_.find(worker);
  return it == workers_.end() || it->second.refused.count(prompt) == 0;
}

std::map<size_t, std::string> PromptRoom::RefusedByAll(const std::vector<std::string>& workers) const {
  std::vector<const Worker*> found;
  for (const std::string& worker : workers) {
    const auto it = workers_.find(worker);
    if (it == workers_.end()) return {};  // it has the room for all of them
    found.push_back(&it->second);
  }
  std::map<size_t, std::string> out;
  if (found.empty()) return out;
  const Worker* const fewest = *std::min_element(found.begin(), found.end(), [](const Worker* a, const Worker* b) {
    return a->refused.size() < b->refused.size();
  });
  for (const auto& [prompt, refusal] : fewest->refused) {
    if (std::all_of(found.begin(), found.end(),
                    [prompt = prompt](const Worker* worker) { return worker->refused.count(prompt) > 0; }))
      out.emplace(prompt, refusal.why);
  }
  return out;
}

void PromptRoom::Queued(const SampleKey& key, size_t prompt) {
  for (auto& [name, worker] : workers_) {
    if (key < worker.looked_to && worker.refused.count(prompt) == 0) worker.fits.insert(key);
  }
}

std::vector<SampleKey> PromptRoom::First(const std::string& worker, const std::set<SampleKey>& queued,
                                         const SampleKey& end, size_t most,
                                         absl::FunctionRef<size_t(const SampleKey&)> prompt_of) {
  std::vector<SampleKey> keys;
  const auto it = workers_.find(worker);
  if (it == workers_.end()) {
    for (auto key = queued.begin(); key != queued.end() && *key < end && keys.size() < most; ++key)
      keys.push_back(*key);
    return keys;
  }
  Worker& small = it->second;
  for (auto key = small.fits.begin(); key != small.fits.end();) {
    if (*key >= end || keys.size() == most) return keys;
    ++looked_at_;
    if (queued.count(*key) == 0 || small.refused.count(prompt_of(*key)) > 0) {
      key = small.fits.erase(key);
    } else {
      keys.push_back(*key++);
    }
  }
  for (auto key = queued.lower_bound(small.looked_to); key != queued.end() && *key < end && keys.size() < most; ++key) {
    ++looked_at_;
    small.looked_to = {std::get<0>(*key), std::get<1>(*key), std::get<2>(*key) + 1};
    if (small.refused.count(prompt_of(*key)) > 0) continue;
    small.fits.insert(*key);
    keys.push_back(*key);
  }
  return keys;
}

}  // namespace rlhf::coordinator
