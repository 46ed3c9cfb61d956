// Jobs: submission, life cycle, stages of pipelines, and the learner's calls about a job. Loop thread only; one driver
// per kind behind it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "coordinator/artifacts.h"
#include "coordinator/event_log.h"
#include "coordinator/event_loop.h"
#include "coordinator/feedback.h"
#include "coordinator/learner_groups.h"
#include "coordinator/oversight.h"
#include "coordinator/quotas.h"
#include "coordinator/sampling.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::coordinator {

// Whether the caller has part in a project ("*": in all): jobs of others are not named to them.
using Sees = std::function<bool(const std::string& project)>;

// How many jobs there are, by kind ("ppo") and state; stages of pipelines count as jobs.
using JobCensus = std::map<std::pair<std::string, v1::JobState>, int64_t>;

class Jobs {
 public:
  virtual ~Jobs() = default;
  // Restores jobs from the store and goes on with the active ones. Call once before serving.
  virtual absl::Status Recover() = 0;
  // --- API. `subject` is the caller; project rights are checked by the edge through ProjectOf.
  virtual void Submit(const std::string& subject, const v1::SubmitJobRequest& request,
                      Done<v1::SubmitJobResponse> done) = 0;
  virtual v1::ValidateJobResponse Validate(const v1::ValidateJobRequest& request) = 0;
  virtual absl::StatusOr<v1::Job> Get(const std::string& id_or_name, const std::string& project) = 0;
  virtual absl::StatusOr<v1::ListJobsResponse> List(const v1::ListJobsRequest& request) = 0;
  // By id; null when there is none. Until the next turn of the loop.
  virtual const v1::Job* Find(const std::string& job_id) const = 0;
  virtual const JobCensus& census() const = 0;
  // The jobs that have not ended, and those that came after an earlier call, whose result `after` is (0: all there
  // are), oldest first, stages included. What is done again and again need not look at those that ended long ago.
  virtual int64_t Visit(int64_t after, absl::FunctionRef<void(const v1::Job&)> fn) const = 0;
  virtual void Cancel(const std::string& subject, const v1::CancelJobRequest& request, Done<v1::Job> done) = 0;
  virtual void Pause(const std::string& subject, const v1::PauseJobRequest& request, Done<v1::Job> done) = 0;
  virtual void Resume(const std::string& subject, const v1::ResumeJobRequest& request, Done<v1::Job> done) = 0;
  virtual void Delete(const std::string& subject, const v1::DeleteJobRequest& request,
                      Done<v1::DeleteJobResponse> done) = 0;
  virtual absl::StatusOr<v1::ExplainJobResponse> Explain(const std::string& job_id, const Sees& sees) = 0;
  // A job as a caller may read it: without the id of one that they do not see.
  virtual v1::Job Shown(v1::Job job, const Sees& sees) const = 0;
  // FailedPrecondition when an active job needs the artifact or has made it.
  virtual absl::Status CheckUnused(const std::string& digest, const Sees& sees) const = 0;
  // --- learners
  // All chunks of the step's batch at once, when complete (a long wait: ends with the batch, or Aborted when the group
  // changes).
  virtual void NextBatch(const v1::NextBatchRequest& request,
                         Done<std::shared_ptr<const std::vector<v1::Sample>>> done) = 0;
  virtual void CommitStep(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) = 0;
  virtual void RefuseStep(const v1::RefuseStepRequest& request, Done<v1::RefuseStepResponse> done) = 0;
  virtual absl::StatusOr<v1::GetCommittedResponse> GetCommitted(const std::string& job_id) = 0;
  virtual void ReportProgress(const v1::ReportProgressRequest& request, Done<v1::ReportProgressResponse> done) = 0;
  virtual void ReportCheckpoint(const v1::ReportCheckpointRequest& request,
                                Done<v1::ReportCheckpointResponse> done) = 0;
  virtual void FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) = 0;
  virtual void FailTraining(const v1::FailTrainingRequest& request, Done<v1::FailTrainingResponse> done) = 0;
  // why not empty: a volume has too little room, is read-only, or hangs. Active jobs pause with it as their reason, and
  // with the code kDiskFull, kDiskReadOnly or kDiskHangs, until it is empty again.
  virtual void SetOutOfRoom(const std::string& why, const std::string& code) = 0;
  virtual void Tick() = 0;  // deadlines, queued jobs; called every 200 ms
};

// reason_code of a job that a newer release began, and that this one does not know whole: it waits for that release.
inline constexpr char kNewerRelease[] = "NEWER_RELEASE";
// reason_code of a job that the coordinator itself has paused: for want of room, of a volume to write to, or of one
// that answers.
inline constexpr char kDiskFull[] = "DISK_FULL";
inline constexpr char kDiskReadOnly[] = "DISK_READ_ONLY";
inline constexpr char kDiskHangs[] = "DISK_HANGS";

class PayloadRetention;

struct JobsDeps {
  EventLoop* loop;
  Background* background;  // what reads and makes artifacts
  StateStore* store;
  EventLog* events;
  Sampling* sampling;
  LearnerGroups* groups;
  Feedback* feedback;
  Oversight* oversight;
  Artifacts* artifacts;
  const Quotas* quotas = nullptr;         // null: no bounds
  Background* batches = nullptr;          // short work on learners' batches; null: `background`
  PayloadRetention* retention = nullptr;  // null: payloads stay
  int issued_at_once = 65'536;            // samples of a sample or evaluate job; their rows are in memory
};
std::unique_ptr<Jobs> MakeJobs(const JobsDeps& deps);

}  // namespace rlhf::coordinator
