// Which jobs' learner groups start, and which running ones make room. Pure logic: no clock, no sessions.
//
// A group starts as a gang, all ranks or none, so that no two jobs can each hold half of what both need. Waiting jobs
// of one priority go by share: the project, then the submitter, with fewer learners for its weight first, then who
// waited longest. Priorities compete by what was asked for plus one for each `aging` of their longest wait, so that
// none starves. The first that does not fit
//  - takes running groups of lower priority, at the end of their step, when they and the free learners suffice;
//  - else keeps the free learners: only jobs that it could take them back from later may pass it, and those that have
//    enough in the ones that cannot train it.
// A running group keeps the effective priority that it started with: what has waited long is not sent back at once.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/scheduling/fair_share.h"

namespace rlhf::coordinator {

struct GangJob {
  std::string id;
  int priority = 0;  // as submitted; higher first
  std::string project, submitter;
  int ranks = 1;
  int unfit = 0;                                 // not running: of the free learners, those that cannot train it …
  int unfit_registered = 0;                      // … and of the registered
  bool running = false;                          // holds `held` learners
  bool yielding = false;                         // running, and told to make room
  int held = 0;                                  // running: learners it has (its group may be smaller than `ranks`)
  int started_with = 0;                          // running: the effective priority it started with
  absl::Duration waited = absl::ZeroDuration();  // not running
};

enum class GangWait { kNone, kTooFewLearners, kLearnersBusy, kQuota };

struct GangPlan {
  struct Start {
    std::string id;
    int effective_priority = 0;  // with which it starts
  };
  std::vector<Start> start;                  // in order
  std::map<std::string, std::string> yield;  // running job to the one that takes its learners
  std::map<std::string, GangWait> waits;     // of every job that does not start
};

struct GangRules {
  absl::Duration aging = absl::Minutes(10);
};

// `free`: idle learners that ask for work. `registered`: all that could ever serve, members included.
GangPlan PlanGangs(const std::vector<GangJob>& jobs, int free, int registered, ShareRuleOf rule,
                   const GangRules& rules = {});

}  // namespace rlhf::coordinator
