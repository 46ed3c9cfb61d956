// `rlhfctl why JOB`: from the facts of a job to what it waits for. Pure logic; the job table gathers the facts.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/scheduling/gang.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// Stands for the id of a job whose project the reader has no part in.
inline constexpr char kJobElsewhere[] = "a job of another project";
// "job ID", or kJobElsewhere as it is.
std::string JobNamed(const std::string& id);

inline constexpr absl::Duration kNoProgress = absl::Minutes(10);

// Of the learners, for a job that trains.
struct LearnerFacts {
  bool trains = false;
  bool formed = false;   // all members have their assignment
  bool forming = false;  // members are chosen; not all have it
  int ranks = 0, registered = 0;
  int free = 0;                         // those of the version of which there are most
  int unsuited = 0;                     // of the registered, those that cannot train it
  std::string unsuited_why;             // one of them
  std::map<std::string, int> versions;  // registered ones of each: a group is of one
  GangWait wait = GangWait::kNone;
  std::vector<std::string> holders;     // jobs that have learners
  std::vector<std::string> not_joined;  // forming: members that have not taken their assignment
  bool awaits_holders = false;          // who holds the committed weights is given time to return
  bool yielding = false;                // it was told to make room
  std::string yields_to;
  absl::Duration since;  // in this state
  std::string broke;     // why the last group broke, while the next one is put off for it
  absl::Duration next_in;
};

// Of samples, for a job that generates.
struct SampleFacts {
  bool generates = false;
  v1::LedgerCounts counts;
  bool batch_wanted = false;  // a learner asks for the next step's samples
  bool weights_away = false;  // nothing may be leased: nobody serves the committed weights
  int rollout_workers = 0;    // that take work
  int reward_servers = 0;
  int unsuited_workers = 0;         // of the rollout workers, those that cannot serve it as they were started
  std::string unsuited_why;         // one of them, and how to start it instead
  int unsuited_reward_servers = 0;  // likewise
  std::string unsuited_reward_why;
  int too_large_samples = 0;   // queued ones that no rollout worker has the room for
  std::string too_large_why;   // of one of them
  int serving_this = 0;        // rollout workers that hold leases of this job
  int loading = 0;             // samples leased to workers that have long fetched or loaded what they need
  std::string loading_by;      // one of those
  absl::Duration loading_for;  // the longest of them
  std::vector<std::string> rollout_holders;  // other jobs that have rollout workers
  bool over_quota = false;                   // its project or submitter has all the rollout workers it may have
  int score_requests = 0;
  std::string last_problem;  // of a worker or reward server with its samples; empty: none
  absl::Duration since;      // of the last sample that finished, or of its start
};

struct JobFacts {
  v1::Job job;
  absl::Duration in_state;      // since its state began
  absl::Duration no_progress;   // since anything of it finished
  bool starting = false;        // its data is being read
  std::string newer_release;    // why this one does not run it
  bool over_job_quota = false;  // its project has all the active jobs it may have
  std::vector<std::string> quota_holders;
  std::string store_failure;  // empty: the store works
  std::string unpublished;    // why it cannot read or publish an artifact yet; empty: nothing waits for the volume
  bool halted = false;
  std::string halted_by, halt_reason;
  LearnerFacts learners;
  SampleFacts samples;
  bool checkpointing = false;
  bool first_of_group = false;  // the group has ended no step yet: its learners may still load what they need
  std::string saved_by;         // the learner that writes its checkpoints
  // collect
  bool collects = false;
  int64_t answered = 0, wanted = 0, handed_out = 0;
  std::vector<std::string> raters;  // that hold a task
  // pipeline
  bool pipeline = false;
  std::string gate_id;  // that waits; empty: none
  int approvals = 0, required_approvals = 0;
  std::vector<std::string> approved_by;
  std::string stage_id;  // that runs; empty: none
  std::string stage_waits_for;
};

// Puts kJobElsewhere in place of the ids of jobs that `hidden` says yes to; the job itself is as it may be shown.
void HideJobs(const std::function<bool(const std::string& job_id)>& hidden, JobFacts* facts);

// At least one wait; the flat fields are the first's.
v1::ExplainJobResponse ExplainFacts(const JobFacts& facts);

}  // namespace rlhf::coordinator
