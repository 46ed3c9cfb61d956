// Who gets the next unit of the fleet: a rollout worker, a place at a reward server. Pure logic.
//
// Strictly by priority; among equals by weighted max-min fairness (progressive filling): first the project that holds
// least for its weight, then the submitter in it, then the job. Nobody gets more than its quota.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace rlhf::coordinator {

struct Claim {
  int priority = 0;  // higher first
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
