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

// The next in line. Jobs of one priority go by share, then wait; priorities compete by what was asked for plus the
// aging of their longest wait, so that aging never overrules the weights of projects.
struct Next {
  size_t index = 0;
  int effective = 0;
};
Next NextInLine(const std::vector<const GangJob*>& waiting, Shares& shares, const GangRules& rules) {
  using Rank = std::tuple<std::pair<double, double>, absl::Duration, std::string>;
  struct Class {
    Next best;
    Rank rank;
    absl::Duration longest;
  };
  std::map<int, Class> classes;
  for (size_t i = 0; i < waiting.size(); ++i) {
    const GangJob& job = *waiting[i];
    const Rank rank{shares.Of(job), -job.waited, job.id};
    const auto [it, fresh] = classes.try_emplace(job.priority, Class{{i, 0}, rank, job.waited});
    if (!fresh && rank < it->second.rank) {
      it->second.best.index = i;
      it->second.rank = rank;
    }
    it->second.longest = std::max(it->second.longest, job.waited);
  }
  const Class* best = nullptr;
  for (auto& [priority, one] : classes) {
    one.best.effective = priority + static_cast<int>(absl::FDivDuration(one.longest, rules.aging));
    if (best == nullptr || std::tuple(-one.best.effective, one.rank) < std::tuple(-best->best.effective, best->rank))
      best = &one;
  }
  return best->best;
}

}  // namespace

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
  int spare = 0;          // but so many, which cannot train it
  int taken = 0;          // of those that were free
  while (!waiting.empty()) {
    // With nothing left to give the order does not matter any more.
    const bool nothing_left = first_blocked != nullptr && (free == 0 || (reserved && spare == 0));
    const Next next = nothing_left ? Next{waiting.size() - 1, 0} : NextInLine(waiting, shares, rules);
    const GangJob& job = *waiting[next.index];
    waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(next.index));
    if (job.ranks > registered - job.unfit_registered) {
      plan.waits[job.id] = GangWait::kTooFewLearners;
      continue;
    }
    if (!shares.Fits(job)) {
      plan.waits[job.id] = GangWait::kQuota;
      continue;
    }
    // Of those that other jobs got just now all may be fit for this one: then it is its turn when this is asked again.
    const int fit = std::max(0, free - job.unfit);
    const bool may_pass = first_blocked == nullptr ||
                          (!nothing_left && !reserved && next.effective < first_blocked->priority) ||
                          job.ranks <= std::min(free, spare) - job.unfit;
    if (may_pass && job.ranks <= fit) {
      plan.start.push_back({job.id, next.effective});
      free -= job.ranks;
      spare = std::max(0, spare - job.ranks);
      taken += job.ranks;
      shares.Add(job, job.ranks);
      continue;
    }
    plan.waits[job.id] = GangWait::kLearnersBusy;
    if (first_blocked != nullptr) continue;
    first_blocked = &job;
    spare = std::max(0, std::min(free, job.unfit - taken));
    const int missing = job.ranks - fit - coming;
    const std::vector<const GangJob*> victims = Victims(job, jobs, missing);
    for (const GangJob* victim : victims) plan.yield[victim->id] = job.id;
    reserved = missing <= 0 || !victims.empty();
  }
  return plan;
}

}  // namespace rlhf::coordinator
