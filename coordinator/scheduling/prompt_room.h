// Which rollout workers have not the room for which prompts of a job, and so which of its queued samples each may get.
// Workers are named by their sessions, prompts by their places among the job's. Pure logic, not thread-safe.
//
// A worker that is too small for much of a long queue is to cost no walk past all of it whenever it asks: what it was
// found too small for is passed once, until it has more room (looked_at counts).
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "coordinator/ledger.h"

namespace rlhf::coordinator {

class PromptRoom {
 public:
  // The worker is too small for the prompt. needs: how much memory for keys and values would do, in bytes; 0: none
  // would. False: that was known.
  bool Refuse(const std::string& worker, size_t prompt, std::string why, int64_t needs);
  // The worker has so much memory for keys and values now. True: there are prompts that it is no longer too small for.
  bool HasNow(const std::string& worker, int64_t bytes);
  void Forget(const std::string& worker);

  bool RefusedAny(const std::string& worker) const { return workers_.count(worker) > 0; }
  bool AnyRefused() const { return !workers_.empty(); }
  bool Fits(const std::string& worker, size_t prompt) const;
  // The prompts that each of these workers is too small for, with what one of them said; none without workers.
  std::map<size_t, std::string> RefusedByAll(const std::vector<std::string>& workers) const;

  // To be told of every sample that is queued, for the first time or again.
  void Queued(const SampleKey& key, size_t prompt);
  // The first queued samples before `end` that the worker has the room for, at most `most`, in order.
  std::vector<SampleKey> First(const std::string& worker, const std::set<SampleKey>& queued, const SampleKey& end,
                               size_t most, absl::FunctionRef<size_t(const SampleKey&)> prompt_of);
  // Samples that First has looked at for workers that are too small for some.
  int64_t looked_at() const { return looked_at_; }

 private:
  struct Refusal {
    std::string why;
    int64_t needs;
  };
  struct Worker {
    std::map<size_t, Refusal> refused;              // by prompt; not empty
    std::set<std::pair<int64_t, size_t>> by_needs;  // of those that some memory would do for
    // What is queued before `looked_to` and fits is among `fits`, beside what is neither any more.
    SampleKey looked_to = {0, 0, 0};
    std::set<SampleKey> fits;
  };

  std::map<std::string, Worker> workers_;
  int64_t looked_at_ = 0;
};

}  // namespace rlhf::coordinator
