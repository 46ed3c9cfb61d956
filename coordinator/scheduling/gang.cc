#include "coordinator/scheduling/gang.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace rlhf::coordinator {
namespace {

// What projects and submitters hold, and may hold.
class Shares {
 public:
  explicit Shares(ShareRuleOf rule) : rule_(rule) {}
  void Add(const GangJob& job, int learners) {
    held_[{job.project, ""}] += learners;
    held_[{job.project, job.submitter}] += learners;
  }
  bool Fits(const GangJob& job) {
    return FitsOne(job.project, "", job.ranks) && FitsOne(job.project, job.submitter, job.ranks);
  }
  std::pair<double, double> Of(const GangJob& job) {
    return {held_[{job.project, ""}] / rule_(job.project, "").weight,
            held_[{job.project, job.submitter}] / rule_(job.project, job.submitter).weight};
  }

 private:
  bool FitsOne(const std::string& project, const std::string& submitter, int more) {
    const int limit = rule_(project, submitter).limit;
    return limit == 0 || held_[{project, submitter}] + more <= limit;
  }
  ShareRuleOf rule_;
  std::map<std::pair<std::string, std::string>, int> held_;
};

// Running groups that `job` may take, least deserving first, until `missing` learners come free; empty when all of
// them together are too few.
std::vector<const GangJob*> Victims(const GangJob& job, const std::vector<GangJob>& jobs, int missing) {
  std::vector<const GangJob*> candidates;
  for (const GangJob& other : jobs) {
    if (other.running && !other.yielding && other.started_with < job.priority) candidates.push_back(&other);
  }
  std::sort(candidates.begin(), candidates.end(), [](const GangJob* a, const GangJob* b) {
    return std::tuple(a->started_with, -a->held, a->id) < std::tuple(b->started_with, -b->held, b->id);
  });
  std::vector<const GangJob*> taken;
  for (const GangJob* candidate : candidates) {
    if (missing <= 0) break;
    taken.push_back(candidate);
    missing -= candidate->held;
  }
  if (missing > 0) taken.clear();
  return taken;
}

}  // namespace

int EffectivePriority(const GangJob& job, const GangRules& rules) {
  return job.priority + static_cast<int>(absl::FDivDuration(job.waited, rules.aging));
}

GangPlan PlanGangs(const std::vector<GangJob>& jobs, int free, int registered, ShareRuleOf rule,
                   const GangRules& rules) {
  GangPlan plan;
  Shares shares(rule);
  std::vector<const GangJob*> waiting;
  int coming = 0;  // learners of groups that were told to make room
  for (const GangJob& job : jobs) {
    if (job.running) {
      shares.Add(job, job.held);
      coming += job.yielding ? job.held : 0;
    } else {
      waiting.push_back(&job);
    }
  }
  const GangJob* first_blocked = nullptr;
  bool reserved = false;  // what is free is needed by the first that is blocked
  while (!waiting.empty()) {
    const auto rank = [&](const GangJob* job) {
      return std::tuple(-EffectivePriority(*job, rules), shares.Of(*job), -job->waited, job->id);
    };
    const auto next = std::min_element(waiting.begin(), waiting.end(),
                                       [&](const GangJob* a, const GangJob* b) { return rank(a) < rank(b); });
    const GangJob& job = **next;
    waiting.erase(next);
    if (job.ranks > registered) {
      plan.waits[job.id] = GangWait::kTooFewLearners;
      continue;
    }
    if (!shares.Fits(job)) {
      plan.waits[job.id] = GangWait::kQuota;
      continue;
    }
    const bool may_pass =
        first_blocked == nullptr || (!reserved && EffectivePriority(job, rules) < first_blocked->priority);
    if (may_pass && job.ranks <= free) {
      plan.start.push_back(job.id);
      free -= job.ranks;
      shares.Add(job, job.ranks);
      continue;
    }
    plan.waits[job.id] = GangWait::kLearnersBusy;
    if (first_blocked != nullptr) continue;
    first_blocked = &job;
    const int missing = job.ranks - free - coming;
    const std::vector<const GangJob*> victims = Victims(job, jobs, missing);
    for (const GangJob* victim : victims) plan.yield[victim->id] = job.id;
    reserved = missing <= 0 || !victims.empty();
  }
  return plan;
}

}  // namespace rlhf::coordinator
