// How the ranks of a group wait for each other's work of any length (a call to the coordinator, which a halt may keep
// for hours; a checkpoint; a download) although no collective may take longer than its timeout: the work runs on a
// thread of its own, and meanwhile all ranks keep exchanging that it is not done.
//
// Of the training thread; every rank makes the same calls in the same order. working_alone() of any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "learner/collective.h"

namespace rlhf::learner {

class RankMeeting {
 public:
  // device: of what the ranks exchange. every: how often they do; well below what a collective may take.
  explicit RankMeeting(torch::Device device, absl::Duration every = absl::Seconds(2))
      : device_(device), every_(every) {}

  // The group of the calls below; it must outlive them.
  void SetCollective(Collective* collective) { collective_ = collective; }

  // What each rank's `tell` returns, `count` numbers, summed over the ranks. Where it takes its time (`aside`) it runs
  // on a thread of its own. It has returned when this returns, also with the group's error (Unavailable).
  absl::StatusOr<std::vector<double>> Sum(size_t count, bool aside, const std::function<std::vector<double>()>& tell);
  // The same for work of all ranks. The returned status is the group's, *outcome the work's.
  absl::Status Together(const std::function<absl::Status()>& work, absl::Status* outcome);
  // Rank 0's `call`, while all ranks meet; its error there, Aborted on the others: "rank 0 could not WHAT".
  absl::Status ByRankZero(const std::string& what, const std::function<absl::Status()>& call);

  // While it lives this rank is at work that may take any time.
  class Alone {
   public:
    explicit Alone(RankMeeting* meeting) : flag_(&meeting->working_alone_) { *flag_ = true; }
    ~Alone() { *flag_ = false; }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

   private:
    std::atomic<bool>* const flag_;
  };
  // Within such work, or one of the calls above.
  bool working_alone() const { return working_alone_; }

 private:
  const torch::Device device_;
  const absl::Duration every_;
  Collective* collective_ = nullptr;
  std::atomic<bool> working_alone_{false};
};

}  // namespace rlhf::learner
