// Who gets the next unit of the fleet: a rollout worker, a place at a reward server. Pure logic.
//
// By priority, to which waiting adds (Patience) so that none starves; among equals by weighted max-min fairness
// (progressive filling): first the project that holds least for its weight, then the submitter in it, then the job.
// Nobody gets more than its quota.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rlhf::coordinator {

// What a job's waiting is worth: one point of priority for each `aging` in which it wanted a unit and got none. Once it
// is given one it keeps its points for another `aging`, so that it gets somewhere, and then waits anew. Not
// thread-safe.
class Patience {
 public:
  explicit Patience(absl::Duration aging = absl::Minutes(10)) : aging_(aging) {}
  // Points at `now`; `wants`: whether it would take a unit.
  int Points(absl::Duration now, bool wants);
  void Granted(absl::Duration now);

 private:
  absl::Duration aging_;
  std::optional<absl::Duration> wants_since_, keeps_until_;
  int points_ = 0;
};

struct Claim {
  int priority = 0;  // higher first: as submitted, and its patience
  std::string project, submitter;
  int held = 0;       // units the job has now
  bool wants = true;  // false: it only counts in its project's and submitter's usage
};

// What a project (submitter empty) or a submitter in it may have.
struct ShareRule {
  int limit = 0;  // units at once; 0: no bound
  double weight = 1;
};
using ShareRuleOf = absl::FunctionRef<ShareRule(const std::string& project, const std::string& submitter)>;

// Index of the claim that gets the next unit, or −1. `current` (−1: none) wins ties, so that what works well stays.
int PickClaim(const std::vector<Claim>& claims, ShareRuleOf rule, int current);

}  // namespace rlhf::coordinator
