// Process groups of learners: who trains which job, at which epoch, with which rank. All ranks of a group are of one
// version (RegisterRequest.build_version): two may add their gradients up in other orders, or other buckets. Loop
// thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "coordinator/event_loop.h"
#include "coordinator/fleet.h"
#include "coordinator/quotas.h"
#include "coordinator/scheduling/gang.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::coordinator {

struct TrainingPlan {
  std::string job_id;
  std::string project, submitter;  // whose share it is
  int priority = 0;
  int ranks = 1;
  int min_ranks =
      1;  // in [1, ranks]: with fewer than `ranks` the survivors go on, after a moment for the dead to return
};

// The job behind a group.
class TrainingListener {
 public:
  virtual ~TrainingListener() = default;
  // A group forms (first time or again). `held`: the newest version of this job that a member still holds, or all of
  // its members' shares of the optimizer's state together, or null; where it is not the committed one the job rolls
  // back to its checkpoint. `ranks`: its size. `rank0_address`: the WeightsService that will hold the version the group
  // starts from. Says from where to train.
  virtual v1::GroupAssignment OnGroupForming(const std::string& job_id, uint64_t epoch, int ranks,
                                             const v1::PolicyVersion* held, const std::string& rank0_address) = 0;
  // The version that is committed: who holds it goes first. Null: nothing of the job is held across groups.
  virtual const v1::PolicyVersion* Committed(const std::string& job_id) { return nullptr; }
  // Whether steps are trained again where nobody holds what is committed: a group that had it is given the time to come
  // back.
  virtual bool LosesSteps(const std::string& job_id) const { return false; }
  // The last step that was done, smaller again after a return to a checkpoint: a group that breaks again and again at
  // one step is formed ever later.
  virtual int64_t StepOf(const std::string& job_id) const = 0;
  // Before the next OnGroupForming, always.
  virtual void OnGroupLost(const std::string& job_id, const std::string& why) = 0;
  // A job of higher priority is to have this one's learners: calls Release at the end of the step, after a checkpoint.
  virtual void OnYield(const std::string& job_id, const std::string& to) = 0;
};

class LearnerGroups : public FleetListener {
 public:
  virtual void AddJob(TrainingPlan plan, uint64_t last_epoch, TrainingListener* listener) = 0;
  virtual void RemoveJob(const std::string& job_id) = 0;  // its ranks are told to leave
  // Long poll. `gone`: whether nobody waits for the answer any more; then it makes no member.
  virtual void JoinGroup(const v1::JoinGroupRequest& request, Done<v1::JoinGroupResponse> done,
                         std::function<bool()> gone = nullptr) = 0;
  virtual void PublishRendezvous(const v1::PublishRendezvousRequest& request,
                                 Done<v1::PublishRendezvousResponse> done) = 0;
  // Aborted with STALE_EPOCH unless the session is a member of the job's current epoch. Every call of a learner passes
  // this first.
  virtual absl::Status Fence(const std::string& job_id, uint64_t epoch, const std::string& session_id) const = 0;
  // Ends the job's group, if there is one: its ranks join again.
  virtual void Break(const std::string& job_id, const std::string& why) = 0;
  // The member cannot train the job, which other learners may: the group ends, and none of the job is formed with that
  // session again. `beside`: only beside the others of this group; should too few be left without it, it is as before.
  virtual void PassOver(const std::string& job_id, const std::string& session_id, const std::string& why,
                        bool beside) = 0;
  // The group has fewer ranks than the job wants and a free one of its version waits: true, and the group is formed
  // anew as soon as its ranks have joined again.
  virtual bool TakeIn(const std::string& job_id) = 0;
  // Gives the group's learners up in good order: no OnGroupLost, and the job waits for its next turn.
  virtual void Release(const std::string& job_id, const std::string& why) = 0;
  // All members know CommitStepResponse.checkpoint (protocol version 2).
  virtual bool CheckpointsOnRequest(const std::string& job_id) const = 0;
  // For `rlhfctl why`.
  struct Situation {
    bool formed = false, forming = false;
    int registered = 0;
    int free = 0;                         // those of the version of which there are most
    int unsuited = 0;                     // registered ones that cannot train the job
    std::string unsuited_why;             // one of them
    std::map<std::string, int> versions;  // registered ones of each
    GangWait wait = GangWait::kNone;
    std::vector<std::string> holders;     // other jobs that have learners
    std::vector<std::string> not_joined;  // instances that have not taken their assignment
    bool awaits_holders = false;  // ranks are there, and who holds the committed weights is given time to return
    absl::Duration since;
    std::string rank_zero;   // its instance; empty: no group
    std::string broke;       // why the last group broke, while the next one is put off for it
    absl::Duration next_in;  // until the next one may form
  };
  virtual Situation SituationOf(const std::string& job_id) const = 0;
  virtual void Tick() = 0;
};
// quotas may be null: no bounds, equal weights. callers_clock: by which learners give up waiting; it goes on while the
// loop's stands still. Null: the loop's.
std::unique_ptr<LearnerGroups> MakeLearnerGroups(EventLoop* loop, Fleet* fleet, const Quotas* quotas = nullptr,
                                                 const Clock* callers_clock = nullptr);

}  // namespace rlhf::coordinator
