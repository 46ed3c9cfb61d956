#include "coordinator/learner_groups.h"

#include <algorithm>
#include <limits>
#include <list>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/utf8_cut.h"
#include "coordinator/loop_clock.h"

namespace rlhf::coordinator {
namespace {

constexpr uint32_t kCheckpointOnRequest = 2;  // the protocol version that knows it
// From the fourth group on that breaks without a step between, the next one waits: 1 s, 2 s, 4 s …
constexpr int kBreaksWithoutDelay = 3;
constexpr absl::Duration kLongestDelay = absl::Seconds(30);
// Of one for which others made room: they train meanwhile, instead of making room again and again for nothing.
constexpr absl::Duration kLongestDelayAfterPreempting = absl::Minutes(10);
constexpr size_t kLongestReason = 500;  // bytes of what a learner says
constexpr absl::Duration kFormingTimeout = absl::Seconds(30);
// A rank that died is usually started again at once: so long a smaller group waits for the full number.
constexpr absl::Duration kFullGroupPatience = absl::Seconds(5);
// So long a group that broke keeps its turn: its survivors, and who takes the place of the dead, are for it.
constexpr absl::Duration kReturning = absl::Seconds(30);

struct Group {
  TrainingPlan plan;
  TrainingListener* listener;
  uint64_t epoch = 0;
  std::vector<std::string> members;  // sessions by rank; empty: no group now
  std::string version;               // theirs, or of the group before
  std::set<std::string> answered;    // members that have their assignment
  std::string rendezvous;
  absl::Duration formed_at, waiting_since;
  absl::Duration returning_until = -absl::InfiniteDuration();
  bool recovered = false;           // the group before was of a coordinator before this one: its members are not known
  std::string lost;                 // why the group before is over, as long as its job has not been told
  std::set<std::string> survivors;  // sessions of the group before that may still join again
  struct Unsuited {
    std::string why;
    bool beside = false;  // others of its group
  };
  std::map<std::string, Unsuited> unsuited;  // sessions that cannot train the job
  int broken_in_a_row = 0;                   // groups, without a step between
  int64_t step_when_broken = -1;
  int64_t preempted_at = -1;                              // the step at which others were told to make room for it
  std::string broke;                                      // why it did last
  absl::Duration not_before = -absl::InfiniteDuration();  // no group is formed
  bool growing = false;                                   // broken to take a rank in: it waits for the survivors only
  int started_with = 0;                                   // effective priority
  std::string yields_to;                                  // the job that is to have its learners
  GangWait wait = GangWait::kNone;
  v1::GroupAssignment assignment;  // of this epoch, without rank

  bool complete() const { return answered.size() == members.size(); }
};

class LearnerGroupsImpl final : public LearnerGroups {
 public:
  LearnerGroupsImpl(EventLoop* loop, Fleet* fleet, const Quotas* quotas, const Clock* callers_clock)
      : loop_(loop), fleet_(fleet), quotas_(quotas), callers_(&loop->clock(), callers_clock) {
    fleet_->AddListener(this);
  }

  void AddJob(TrainingPlan plan, uint64_t last_epoch, TrainingListener* listener) override {
    Group group;
    const std::string job_id = plan.job_id;
    group.plan = std::move(plan);
    group.listener = listener;
    group.epoch = last_epoch;
    group.waiting_since = loop_->clock().Now();
    // After a restart its learners still hold its weights: its turn is not over.
    group.recovered = last_epoch > 0;
    if (group.recovered) group.returning_until = group.waiting_since + kReturning;
    group.started_with = group.plan.priority;
    groups_[job_id] = std::move(group);
    loop_->Post([this] { Form(); });
  }

  void RemoveJob(const std::string& job_id) override {
    groups_.erase(job_id);
    loop_->Post([this] { Form(); });
  }

  void JoinGroup(const v1::JoinGroupRequest& request, Done<v1::JoinGroupResponse> done,
                 std::function<bool()> gone) override {
    const absl::StatusOr<const Session*> session = fleet_->Find(request.session_id());
    if (!session.ok()) return done(session.status());
    // A member that has its assignment and joins again has left the group.
    for (auto& [id, group] : groups_) {
      if (group.answered.count(request.session_id()) == 0) continue;
      std::string why = absl::StrCat((*session)->identity.instance_id(), " left the group");
      if (!request.left_because().empty())
        absl::StrAppend(&why, ": ", request.left_because().substr(0, Utf8Cut(request.left_because(), kLongestReason)));
      Dissolve(group, why);
    }
    std::erase_if(waiters_, [&](Waiter& waiter) {
      if (waiter.request.session_id() != request.session_id()) return false;
      waiter.done(v1::JoinGroupResponse());
      return true;
    });
    const absl::Duration deadline = callers_.Now() + absl::Milliseconds(request.wait_ms());
    waiters_.push_back({request, std::move(done), deadline, std::move(gone)});
    Form();
    Answer();
  }

  void PublishRendezvous(const v1::PublishRendezvousRequest& request,
                         Done<v1::PublishRendezvousResponse> done) override {
    absl::Status status = Fence(request.job_id(), request.epoch(), request.session_id());
    if (!status.ok()) return done(status);
    Group& group = groups_.at(request.job_id());
    if (group.members.front() != request.session_id())
      return done(absl::FailedPreconditionError("only rank 0 hosts the rendezvous"));
    group.rendezvous = request.address();
    done(v1::PublishRendezvousResponse());
    Answer();
  }

  absl::Status Fence(const std::string& job_id, uint64_t epoch, const std::string& session_id) const override {
    const auto it = groups_.find(job_id);
    const bool member =
        it != groups_.end() && it->second.epoch == epoch &&
        std::find(it->second.members.begin(), it->second.members.end(), session_id) != it->second.members.end();
    if (member) return absl::OkStatus();
    return WithReason(absl::AbortedError(absl::StrCat("this process is not a member of job ", job_id,
                                                      "'s group at epoch ", epoch, " (any more): join again")),
                      v1::STALE_EPOCH);
  }

  void Break(const std::string& job_id, const std::string& why) override {
    if (const auto it = groups_.find(job_id); it != groups_.end()) Dissolve(it->second, why);
  }

  void PassOver(const std::string& job_id, const std::string& session_id, const std::string& why,
                bool beside) override {
    const auto it = groups_.find(job_id);
    const absl::StatusOr<const Session*> session = fleet_->Find(session_id);
    if (it == groups_.end() || !session.ok()) return;
    Group& group = it->second;
    const std::string text = absl::StrCat((*session)->identity.instance_id(), ": ", why);
    const bool first = group.unsuited.try_emplace(session_id, Group::Unsuited{text, beside}).second;
    // A learner fewer each time: there is no need to wait longer and longer.
    if (first && !beside) group.broken_in_a_row = 0;
    Dissolve(group, absl::StrCat("a learner cannot train it, others may: ", text));
    group.survivors.erase(session_id);
  }

  bool TakeIn(const std::string& job_id) override {
    const auto it = groups_.find(job_id);
    if (it == groups_.end()) return false;
    Group& group = it->second;
    // Asked again for the same step it answers alike: the first answer may have been lost.
    group.growing = !group.members.empty() && group.yields_to.empty() &&
                    static_cast<int>(group.members.size()) < group.plan.ranks &&
                    ByVersion(Fit(group, Candidates())).count(group.version) > 0;
    return group.growing;
  }

  void Release(const std::string& job_id, const std::string& why) override {
    const auto it = groups_.find(job_id);
    if (it == groups_.end()) return;
    const LogScope scope({.job_id = job_id, .group_epoch = static_cast<int64_t>(it->second.epoch)});
    spdlog::info("job {}: group of epoch {} makes room: {}", job_id, it->second.epoch, why);
    Clear(it->second);
    it->second.returning_until = -absl::InfiniteDuration();
    loop_->Post([this] {
      Form();
      Answer();
    });
  }

  bool CheckpointsOnRequest(const std::string& job_id) const override {
    const auto it = groups_.find(job_id);
    if (it == groups_.end() || it->second.members.empty()) return false;
    return std::all_of(it->second.members.begin(), it->second.members.end(), [this](const std::string& member) {
      const absl::StatusOr<const Session*> session = fleet_->Find(member);
      return session.ok() && (*session)->identity.protocol_version() >= kCheckpointOnRequest;
    });
  }

  Situation SituationOf(const std::string& job_id) const override {
    Situation out;
    const auto it = groups_.find(job_id);
    if (it == groups_.end()) return out;
    const Group& group = it->second;
    out.formed = !group.members.empty() && group.complete();
    out.forming = !group.members.empty() && !group.complete();
    out.versions = Registered();
    for (const auto& [version, learners] : out.versions) out.registered += learners;
    out.free = Most(ByVersion(Fit(group, Candidates())));
    for (const auto& [session, unsuited] : group.unsuited) {
      ++out.unsuited;
      out.unsuited_why = unsuited.why;
    }
    out.wait = group.wait;
    if (group.members.empty() && loop_->clock().Now() < group.not_before) {
      out.broke = group.broke;
      out.next_in = group.not_before - loop_->clock().Now();
    }
    if (group.members.empty()) {
      const std::vector<const Waiter*> candidates = CandidatesFor(group);
      out.awaits_holders =
          static_cast<int>(candidates.size()) >= group.plan.min_ranks && AwaitsHolders(group, candidates);
    }
    out.since = loop_->clock().Now() - (group.members.empty() ? group.waiting_since : group.formed_at);
    for (const std::string& member : group.members) {
      const absl::StatusOr<const Session*> session = fleet_->Find(member);
      if (session.ok() && member == group.members.front()) out.rank_zero = (*session)->identity.instance_id();
      if (group.answered.count(member) == 0 && session.ok())
        out.not_joined.push_back((*session)->identity.instance_id());
    }
    for (const auto& [id, other] : groups_) {
      if (id != job_id && !other.members.empty()) out.holders.push_back(id);
    }
    return out;
  }

  void Tick() override {
    const absl::Duration now = loop_->clock().Now();
    for (auto& [id, group] : groups_) {
      if (!group.members.empty() && !group.complete() && now - group.formed_at > kFormingTimeout)
        Dissolve(group, "the group did not form in time");
    }
    Form();
    Answer();
    for (auto it = waiters_.begin(); it != waiters_.end();) {
      const absl::StatusOr<const Session*> session = fleet_->Find(it->request.session_id());
      if (session.ok() && callers_.Now() < it->deadline) {
        ++it;
        continue;
      }
      Done<v1::JoinGroupResponse> done = std::move(it->done);
      it = waiters_.erase(it);
      if (session.ok()) {
        done(v1::JoinGroupResponse());
      } else {
        done(session.status());
      }
    }
  }

  void OnHeartbeat(const Session& session, const v1::HeartbeatRequest& request,
                   v1::HeartbeatResponse* response) override {
    if (session.identity.role() != v1::ROLE_LEARNER || request.group_job_id().empty()) return;
    if (!Fence(request.group_job_id(), request.group_epoch(), session.session_id).ok())
      response->set_group_changed(true);
  }

  void OnLost(const Session& session) override {
    for (auto& [id, group] : groups_) {
      group.survivors.erase(session.session_id);
      group.unsuited.erase(session.session_id);
      if (std::find(group.members.begin(), group.members.end(), session.session_id) != group.members.end()) {
        Dissolve(group, absl::StrCat("learner ", session.identity.instance_id(), " was lost"));
      }
    }
  }

 private:
  struct Waiter {
    v1::JoinGroupRequest request;
    Done<v1::JoinGroupResponse> done;
    absl::Duration deadline;     // by callers_
    std::function<bool()> gone;  // null: never
  };

  // Whether somebody may still wait for the answer.
  bool Waits(const Waiter& waiter) const {
    return !callers_.TooLate(waiter.deadline) && !(waiter.gone && waiter.gone());
  }

  bool IsMember(const std::string& session_id) const {
    for (const auto& [id, group] : groups_) {
      if (std::find(group.members.begin(), group.members.end(), session_id) != group.members.end()) return true;
    }
    return false;
  }

  void Dissolve(Group& group, const std::string& why) {
    if (group.members.empty()) return;
    const LogScope scope({.job_id = group.plan.job_id, .group_epoch = static_cast<int64_t>(group.epoch)});
    spdlog::warn("job {}: group of epoch {} is over: {}", group.plan.job_id, group.epoch, why);
    group.survivors.clear();
    for (const std::string& member : group.members) {
      if (fleet_->Find(member).ok()) group.survivors.insert(member);
    }
    Clear(group);
    group.returning_until = group.waiting_since + kReturning;
    group.broke = why;
    group.lost = absl::StrCat(why, PostponeNext(group));
    if (group.not_before > group.returning_until) {
      group.returning_until = -absl::InfiniteDuration();
      group.survivors.clear();
    }
    // Until its listener knows, no other group is formed: it may withdraw the job. In a turn of its own, for whoever
    // dissolves a group may be looking at groups.
    loop_->Post([this, job_id = group.plan.job_id] {
      const auto it = groups_.find(job_id);
      if (it == groups_.end()) return;
      if (const std::string why = std::exchange(it->second.lost, ""); !why.empty())
        it->second.listener->OnGroupLost(job_id, why);
      Form();
      Answer();
    });
  }

  // Some break at once, whenever they are formed: a folder that may not be written, a device without memory. Returns
  // what the job's messages say about it.
  static std::string PostponeNext(Group& group) {
    if (group.growing) return "";
    const int64_t step = group.listener->StepOf(group.plan.job_id);
    group.broken_in_a_row = step != group.step_when_broken ? 1 : group.broken_in_a_row + 1;
    group.step_when_broken = step;
    if (group.broken_in_a_row <= kBreaksWithoutDelay) return "";
    const absl::Duration delay =
        std::min(group.preempted_at == step ? kLongestDelayAfterPreempting : kLongestDelay,
                 absl::Seconds(1 << std::min(group.broken_in_a_row - kBreaksWithoutDelay - 1, 10)));
    group.not_before = group.waiting_since + delay;
    return absl::StrCat(" (", group.broken_in_a_row,
                        " times in a row without a step between; the next group is formed in ",
                        absl::FormatDuration(delay), ")");
  }

  // Whether the waiting one is awaited by a group that broke a moment ago, or by one of before a restart, other than
  // `group`.
  bool AwaitedByAnother(const Waiter& waiter, const Group* group) const {
    const absl::Duration now = loop_->clock().Now();
    return std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
      const Group& other = entry.second;
      return &other != group && other.members.empty() && now < other.returning_until &&
             (other.survivors.count(waiter.request.session_id()) > 0 ||
              waiter.request.held_job_id() == other.plan.job_id);
    });
  }

  // Whether a group that broke a moment ago, other than `group`, keeps the waiting one for its return.
  bool KeptByAnother(const Waiter& waiter, const Group* group) const {
    const auto it = kept_.find(waiter.request.session_id());
    return it != kept_.end() && (group == nullptr || it->second != group->plan.job_id);
  }

  // Whether the group is not formed of these yet, for nobody among them holds what is committed, steps would have to be
  // trained again, and a learner that may hold it is on its way: one that has not registered again since a restart, or
  // that has not left the group before. As long as the group keeps its turn, at most.
  bool AwaitsHolders(const Group& group, std::vector<const Waiter*> candidates) const {
    const absl::Duration now = loop_->clock().Now();
    if (now >= group.returning_until || !group.listener->LosesSteps(group.plan.job_id)) return false;
    candidates.resize(std::min(candidates.size(), static_cast<size_t>(group.plan.ranks)));
    const v1::PolicyVersion* committed = group.listener->Committed(group.plan.job_id);
    if (committed == nullptr || HoldsAllShares(group, *committed, candidates)) return false;
    if (group.recovered && now < started_at_ + fleet_->lease()) return true;
    const std::vector<const Session*> learners = fleet_->Sessions(v1::ROLE_LEARNER);
    return std::any_of(learners.begin(), learners.end(), [&](const Session* session) {
      return group.unsuited.count(session->session_id) == 0 && !session->draining && !session->cordoned &&
             !IsMember(session->session_id) &&
             std::none_of(waiters_.begin(), waiters_.end(), [&](const Waiter& waiter) {
               return waiter.request.session_id() == session->session_id && Waits(waiter);
             });
    });
  }

  void Clear(Group& group) {
    group.members.clear();
    group.answered.clear();
    group.rendezvous.clear();
    group.yields_to.clear();
    group.waiting_since = loop_->clock().Now();
  }

  std::string VersionOf(const Waiter& waiter) const {
    return (*fleet_->Find(waiter.request.session_id()))->identity.build_version();
  }
  std::map<std::string, int> ByVersion(const std::vector<const Waiter*>& candidates) const {
    std::map<std::string, int> count;
    for (const Waiter* waiter : candidates) ++count[VersionOf(*waiter)];
    return count;
  }
  static int Most(const std::map<std::string, int>& by_version) {
    int most = 0;
    for (const auto& [version, count] : by_version) most = std::max(most, count);
    return most;
  }

  // Waiting sessions that may become a rank (of the group), longest waiting first.
  std::vector<const Waiter*> Candidates(const Group* group = nullptr) const {
    std::vector<const Waiter*> candidates;
    for (const Waiter& waiter : waiters_) {
      const absl::StatusOr<const Session*> session = fleet_->Find(waiter.request.session_id());
      if (session.ok() && Waits(waiter) && !(*session)->draining && !(*session)->cordoned &&
          !IsMember(waiter.request.session_id()) && !AwaitedByAnother(waiter, group) && !KeptByAnother(waiter, group))
        candidates.push_back(&waiter);
    }
    return candidates;
  }

  // Without those that cannot train the group's job.
  static std::vector<const Waiter*> Fit(const Group& group, std::vector<const Waiter*> waiters) {
    std::erase_if(waiters,
                  [&](const Waiter* waiter) { return group.unsuited.count(waiter->request.session_id()) > 0; });
    return waiters;
  }

  // Those of one version that the group may be formed of, with which it is largest: who still holds the newest of this
  // job's weights first, to seed the others, then who cannot train another job that waits, then who has waited longest.
  // Nobody who cannot train this one. A group that takes ranks in stays at its own.
  // only: of this version, where it names one.
  std::vector<const Waiter*> CandidatesFor(const Group& group, const std::string& only = "") const {
    std::vector<const Waiter*> candidates = Fit(group, Candidates(&group));
    if (!only.empty()) std::erase_if(candidates, [&](const Waiter* waiter) { return VersionOf(*waiter) != only; });
    const v1::PolicyVersion* committed = group.listener->Committed(group.plan.job_id);
    const auto rank_by = [&](const Waiter* waiter) {
      const int64_t step = HeldStep(group, *waiter);
      return std::tuple(
          committed != nullptr && step == committed->step() && waiter->request.held().digest() == committed->digest(),
          step, UnsuitedForAnother(*waiter, group));
    };
    std::stable_sort(candidates.begin(), candidates.end(),
                     [&](const Waiter* a, const Waiter* b) { return rank_by(a) > rank_by(b); });
    const std::map<std::string, int> count = ByVersion(candidates);
    const std::string* version = nullptr;
    int largest = 0;
    for (const Waiter* waiter : candidates) {
      const auto& [of, there] = *count.find(VersionOf(*waiter));
      if (const int ranks = std::min(there, group.plan.ranks); ranks > largest) {
        largest = ranks;
        version = &of;
      }
    }
    if (const auto own = count.find(group.version); group.growing && own != count.end()) version = &own->first;
    if (count.size() > 1)
      std::erase_if(candidates, [&](const Waiter* waiter) { return VersionOf(*waiter) != *version; });
    return candidates;
  }

  bool UnsuitedForAnother(const Waiter& waiter, const Group& group) const {
    return std::any_of(groups_.begin(), groups_.end(), [&](const auto& entry) {
      const Group& other = entry.second;
      return &other != &group && other.members.empty() && other.unsuited.count(waiter.request.session_id()) > 0;
    });
  }

  // The step of this job whose weights the waiting one holds, -1 for none.
  static int64_t HeldStep(const Group& group, const Waiter& waiter) {
    return waiter.request.held_job_id() == group.plan.job_id ? waiter.request.held().step() : -1;
  }

  // How many ranks the group is formed with now, 0: it still waits. All it wants; or, where the job allows fewer, all
  // there are once the survivors are back and the dead had their moment to return.
  int RanksNow(const Group& group, const std::vector<const Waiter*>& candidates) const {
    const int there = static_cast<int>(candidates.size());
    if (loop_->clock().Now() < group.not_before || AwaitsHolders(group, candidates)) return 0;
    if (there >= group.plan.ranks) return group.plan.ranks;
    if (there < group.plan.min_ranks) return 0;
    const bool all_back = std::all_of(group.survivors.begin(), group.survivors.end(), [&](const std::string& survivor) {
      return std::any_of(candidates.begin(), candidates.end(),
                         [&](const Waiter* waiter) { return waiter->request.session_id() == survivor; });
    });
    const absl::Duration waited = loop_->clock().Now() - group.waiting_since;
    return (all_back && group.growing) || waited > kFullGroupPatience ? there : 0;
  }

  // Learners that take work, by version; `group`: only those that may train its job.
  std::map<std::string, int> Registered(const Group* group = nullptr) const {
    std::map<std::string, int> registered;
    for (const Session* session : fleet_->Sessions(v1::ROLE_LEARNER)) {
      if (group != nullptr && group->unsuited.count(session->session_id) > 0) continue;
      if (!session->draining && !session->cordoned) ++registered[session->identity.build_version()];
    }
    return registered;
  }

  // Whether the job for which groups are to make room has its ranks then, of one version.
  bool Suffices(const GangPlan& plan, const std::vector<GangJob>& jobs, std::map<std::string, int> free) const {
    if (plan.yield.empty()) return true;
    const auto waiting = std::find_if(jobs.begin(), jobs.end(),
                                      [&plan](const GangJob& job) { return job.id == plan.yield.begin()->second; });
    for (const auto& [id, group] : groups_) {
      if (plan.yield.count(id) > 0 || !group.yields_to.empty())
        free[group.version] += static_cast<int>(group.members.size());
    }
    return Most(free) >= waiting->ranks;
  }

  void Form() {
    if (callers_.Settling()) return;
    const absl::Duration now = loop_->clock().Now();
    for (auto& [id, group] : groups_) TryBesideOthers(group);
    // Groups that broke come first: nobody else gets their turn so soon.
    kept_.clear();
    std::vector<GangJob> jobs;
    for (auto& [id, group] : groups_) {
      if (group.members.empty() && now < group.returning_until) {
        const std::vector<const Waiter*> candidates = CandidatesFor(group);
        if (group.lost.empty() && RanksNow(group, candidates) > 0) {
          FormGroup(group);
        } else {
          // Put off, it keeps its survivors alone (AwaitedByAnother); who is free may be another's.
          if (now >= group.not_before)
            for (size_t i = 0; i < std::min(candidates.size(), static_cast<size_t>(group.plan.ranks)); ++i)
              kept_.emplace(candidates[i]->request.session_id(), id);
          continue;
        }
      }
    }
    // No group is of two versions, so that the most of one is all that any can have.
    const std::vector<const Waiter*> free = Candidates();
    const std::map<std::string, int> by_version = ByVersion(free);
    const int registered = Most(Registered());
    for (auto& [id, group] : groups_) {
      // Of those that are put off nobody is to make room for one.
      if (group.members.empty() && now < std::max(group.returning_until, group.not_before)) continue;
      GangJob job;
      job.id = id;
      job.priority = group.plan.priority;
      job.project = group.plan.project;
      job.submitter = group.plan.submitter;
      const int now_possible = group.members.empty() ? RanksNow(group, CandidatesFor(group)) : 0;
      job.ranks = now_possible > 0 ? now_possible : group.plan.ranks;
      job.running = !group.members.empty();
      job.yielding = !group.yields_to.empty();
      job.held = static_cast<int>(group.members.size());
      job.started_with = group.started_with;
      job.waited = now - group.waiting_since;
      if (!group.unsuited.empty()) {
        job.unfit = Most(by_version) - Most(ByVersion(Fit(group, free)));
        job.unfit_registered = registered - Most(Registered(&group));
      }
      jobs.push_back(std::move(job));
    }
    const GangPlan plan = PlanGangs(jobs, Most(by_version), registered, QuotaRule{quotas_, &v1::Quota::max_learners});
    for (auto& [id, group] : groups_) {
      const auto wait = plan.waits.find(id);
      group.wait = wait == plan.waits.end() ? GangWait::kNone : wait->second;
    }
    const bool suffices = Suffices(plan, jobs, by_version);
    if (suffices) Apply(plan);
    if (!suffices || by_version.size() > 1) FormByVersion(std::move(jobs), /*victims=*/!suffices);
  }

  // Learners that could not train the job beside those of a group before are tried beside others once too few are left.
  void TryBesideOthers(Group& group) const {
    if (!group.members.empty() || group.unsuited.empty() || Most(Registered(&group)) >= group.plan.min_ranks) return;
    std::erase_if(group.unsuited, [](const auto& entry) { return entry.second.beside; });
  }

  // version: what starts is of it; empty: of any one.
  void Apply(const GangPlan& plan, const std::string& version = "") {
    for (const GangPlan::Start& start : plan.start) {
      Group& group = groups_.at(start.id);
      group.started_with = start.effective_priority;
      group.wait = GangWait::kNone;
      FormGroup(group, version);
    }
    for (const auto& [id, to] : plan.yield) {
      groups_.at(id).yields_to = to;
      Group& taker = groups_.at(to);
      taker.preempted_at = taker.listener->StepOf(to);
      loop_->Post([this, id = id, to = to] {
        if (const auto it = groups_.find(id); it != groups_.end()) it->second.listener->OnYield(id, to);
      });
    }
  }

  // Each version by itself: who is first in line keeps no learners of one of which there are too few for it. victims:
  // groups of the version may be told to make room.
  void FormByVersion(std::vector<GangJob> jobs, bool victims) {
    for (const auto& [version, registered] : Registered()) {
      std::set<std::string> expecting;  // jobs for which groups make room
      const std::vector<const Waiter*> waiting = Candidates();
      const int free = ByVersion(waiting)[version];
      for (GangJob& job : jobs) {
        const Group& group = groups_.at(job.id);
        const bool here = group.version == version;
        job.running = !group.members.empty();
        job.held = static_cast<int>(group.members.size());
        job.yielding = !group.yields_to.empty() && here;
        job.unfit = job.unfit_registered = 0;
        if (!group.unsuited.empty()) {
          job.unfit = free - ByVersion(Fit(group, waiting))[version];
          job.unfit_registered = registered - Registered(&group)[version];
        }
        job.started_with = victims && here ? group.started_with : std::numeric_limits<int>::max();
        expecting.insert(group.yields_to);
      }
      GangPlan plan = PlanGangs(jobs, free, registered, QuotaRule{quotas_, &v1::Quota::max_learners});
      std::erase_if(plan.yield, [&](const auto& yield) { return expecting.count(yield.second) > 0; });
      Apply(plan, version);
    }
  }

  // Whether the members together hold all of a version's optimizer state: one of them does, or every share of one
  // division is there (learners.shard_optimizer_state).
  static bool HoldsAllShares(const Group& group, const v1::PolicyVersion& version,
                             const std::vector<const Waiter*>& members) {
    std::map<int, std::set<int>> held;  // by the number of shares
    for (const Waiter* member : members) {
      const v1::JoinGroupRequest& request = member->request;
      if (request.held_job_id() != group.plan.job_id || request.held().step() != version.step() ||
          request.held().digest() != version.digest())
        continue;
      const int shares = std::max(1, request.held_shares());
      std::set<int>& of_division = held[shares];
      of_division.insert(request.held_share());
      if (static_cast<int>(of_division.size()) == shares) return true;
    }
    return false;
  }

  void FormGroup(Group& group, const std::string& version = "") {
    std::vector<const Waiter*> candidates = CandidatesFor(group, version);
    const int ranks = RanksNow(group, candidates);
    if (ranks == 0) return;  // who was free a moment ago has become another's
    candidates.resize(static_cast<size_t>(ranks));
    const v1::PolicyVersion& held = candidates.front()->request.held();
    const bool holds = HeldStep(group, *candidates.front()) > 0 && HoldsAllShares(group, held, candidates);
    ++group.epoch;
    group.formed_at = loop_->clock().Now();
    group.version = VersionOf(*candidates.front());
    for (const Waiter* waiter : candidates) group.members.push_back(waiter->request.session_id());
    group.assignment = group.listener->OnGroupForming(group.plan.job_id, group.epoch, ranks, holds ? &held : nullptr,
                                                      (*fleet_->Find(group.members.front()))->identity.address());
    group.assignment.set_job_id(group.plan.job_id);
    group.assignment.set_epoch(group.epoch);
    group.assignment.set_world_size(ranks);
    group.growing = group.recovered = false;
    group.survivors.clear();
  }

  // Rank 0 is answered at once, the others when its rendezvous is known.
  void Answer() {
    if (callers_.Settling()) return;
    for (auto& [id, group] : groups_) {
      for (size_t rank = 0; rank < group.members.size(); ++rank) {
        const std::string& session = group.members[rank];
        if (group.answered.count(session) > 0 || (rank > 0 && group.rendezvous.empty())) continue;
        const auto waiter = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& w) {
          return w.request.session_id() == session && Waits(w);
        });
        if (waiter == waiters_.end()) continue;
        v1::JoinGroupResponse response;
        *response.mutable_assignment() = group.assignment;
        response.mutable_assignment()->set_rank(static_cast<int>(rank));
        if (rank > 0) response.mutable_assignment()->set_rendezvous(group.rendezvous);
        group.answered.insert(session);
        Done<v1::JoinGroupResponse> done = std::move(waiter->done);
        waiters_.erase(waiter);
        done(std::move(response));
      }
    }
  }

  EventLoop* const loop_;
  Fleet* const fleet_;
  const Quotas* const quotas_;
  CallersTime callers_;  // learners'
  const absl::Duration started_at_ = loop_->clock().Now();
  std::map<std::string, Group> groups_;
  std::list<Waiter> waiters_;
  // Sessions that groups which broke a moment ago keep for their return, each for one job, as the last Form found it.
  std::map<std::string, std::string> kept_;
};

}  // namespace

std::unique_ptr<LearnerGroups> MakeLearnerGroups(EventLoop* loop, Fleet* fleet, const Quotas* quotas,
                                                 const Clock* callers_clock) {
  return std::make_unique<LearnerGroupsImpl>(loop, fleet, quotas, callers_clock);
}

}  // namespace rlhf::coordinator
