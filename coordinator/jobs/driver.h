// What drives one active job, by kind; and what a driver may ask of the job table. Loop thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "common/job_state.h"
#include "coordinator/jobs.h"
#include "coordinator/jobs/explain.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {

// The job table, as drivers see it. Jobs are named by id; an id of a job that is gone or has ended makes a call do
// nothing.
class JobHost {
 public:
  virtual ~JobHost() = default;
  virtual const JobsDeps& deps() const = 0;
  virtual v1::Job* Find(const std::string& job_id) = 0;  // null when gone; stable while it exists

  // Adds the job's row to the batch and commits. `then` runs on the loop once that is durable (never, if the store
  // failed).
  virtual void Commit(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void()> then = nullptr) = 0;
  // The same, answering a caller: with the store's failure or with the value.
  virtual void CommitThen(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void(absl::Status)> done) = 0;
  virtual void SetState(v1::Job* job, v1::JobState to, const std::string& reason, const std::string& code,
                        WriteBatch* batch) = 0;
  virtual void AppendMetrics(v1::Job* job, v1::MetricPoint point, WriteBatch* batch) = 0;
  // One line for people, among the job's own events.
  virtual void AppendMessage(v1::Job* job, const std::string& text, WriteBatch* batch) = 0;
  // The same for something a person should look at: an event of its own, audited.
  virtual void AppendAlert(v1::Job* job, const v1::Alert& alert, WriteBatch* batch) = 0;
  // End the job: its driver is stopped first (which may add to the batch), everything in one commit.
  virtual void Succeed(const std::string& job_id, WriteBatch batch) = 0;
  virtual void Fail(const std::string& job_id, const std::string& code, const std::string& reason) = 0;
  // Deletes a checkpoint that no job names any more, unless it is pinned or has an alias.
  virtual void DeleteCheckpoint(const std::string& digest) = 0;
  // `fn`, to be run only while the job is active and so has its driver: for what a driver leaves with the loop, the
  // store or another thread. To be called on the loop, with fn's arguments.
  template <typename Fn>
  auto WhileActive(const std::string& job_id, Fn fn) {
    return [this, job_id, fn = std::move(fn)](auto&&... arguments) mutable {
      const v1::Job* job = Find(job_id);
      if (job != nullptr && !IsTerminal(job->state())) fn(std::forward<decltype(arguments)>(arguments)...);
    };
  }
  // A pipeline's next stage as a job of its own; it starts once durable.
  virtual std::string AddStage(v1::Job* pipeline, const v1::StageSpec& stage, v1::JobSpec spec,
                               std::map<std::string, std::string> resolved, int round, int repeat,
                               WriteBatch* batch) = 0;
};

// Commits, and answers a call once that, and everything before it, is durable.
template <typename Response>
void AnswerThen(JobHost* host, const std::string& job_id, WriteBatch batch, Done<Response> done,
                Response response = Response()) {
  host->CommitThen(job_id, std::move(batch),
                   [done = std::move(done), response = std::move(response)](absl::Status status) mutable {
                     if (!status.ok()) return done(status);
                     done(std::move(response));
                   });
}

class Driver {
 public:
  virtual ~Driver() = default;
  // Begins, or goes on after a restart: everything durable is in the job and its rows. Failures go through
  // JobHost::Fail.
  virtual void Start() = 0;
  // The job ends or is cancelled: gives up groups, leases and tasks. Adds to the batch what the end changes.
  virtual void Stop(WriteBatch* batch) = 0;
  virtual void SetPaused(bool paused, WriteBatch* batch) {}
  virtual void Tick() {}
  // Adds what it knows to the facts that `rlhfctl why` is made of.
  virtual void Describe(JobFacts* facts) = 0;
  // A pipeline's stage ended, durably.
  virtual void OnStageEnded(const v1::Job& stage) {}

  // Learners' calls; only jobs that train answer them.
  using Batch = std::shared_ptr<const std::vector<v1::Sample>>;
  virtual void NextBatch(const v1::NextBatchRequest&, Done<Batch> done) { done(NotForThisKind()); }
  virtual void CommitStep(const v1::CommitStepRequest&, Done<v1::CommitStepResponse> done) { done(NotForThisKind()); }
  // Somebody asks for what is committed: a commit that has not begun by now never does.
  virtual void RefuseWaitingCommits() {}
  virtual void RefuseStep(const v1::RefuseStepRequest&, Done<v1::RefuseStepResponse> done) { done(NotForThisKind()); }
  virtual void ReportProgress(const v1::ReportProgressRequest&, Done<v1::ReportProgressResponse> done) {
    done(NotForThisKind());
  }
  virtual void ReportCheckpoint(const v1::ReportCheckpointRequest&, Done<v1::ReportCheckpointResponse> done) {
    done(NotForThisKind());
  }
  virtual void FinishTraining(const v1::FinishTrainingRequest&, Done<v1::FinishTrainingResponse> done) {
    done(NotForThisKind());
  }
  virtual void FailTraining(const v1::FailTrainingRequest&, Done<v1::FailTrainingResponse> done) {
    done(NotForThisKind());
  }

 protected:
  static absl::Status NotForThisKind() { return absl::FailedPreconditionError("this job's kind has no such call"); }
};

std::unique_ptr<Driver> MakeTrainingDriver(JobHost* host, const std::string& job_id);  // sft, reward_model
std::unique_ptr<Driver> MakePpoDriver(JobHost* host, const std::string& job_id);
std::unique_ptr<Driver> MakeGeneratingDriver(JobHost* host, const std::string& job_id);  // sample, evaluate
std::unique_ptr<Driver> MakeCollectDriver(JobHost* host, const std::string& job_id);
std::unique_ptr<Driver> MakePipelineDriver(JobHost* host, const std::string& job_id);

// Reads a prompts artifact off the loop; `then` runs on the loop. In the file's order, or shuffled by the seed; of
// these the first `limit`, where 0 is all. While the artifacts' volume is not there it waits for it.
void LoadPrompts(const JobsDeps& deps, const std::string& digest, bool shuffle, uint64_t seed, int limit,
                 absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<const std::vector<v1::Prompt>>>)> then);
// The digest a reference of the job's specification was resolved to; empty for an empty reference.
std::string Resolved(const v1::Job& job, const std::string& reference);
// A scorer with references replaced by digests.
v1::ScorerSpec ResolvedScorer(const v1::Job& job, v1::ScorerSpec scorer);
// What the plans of all kinds have of their jobs.
SamplingPlan PlanOf(const v1::Job& job);
// Noise stream of a job: stages of one pipeline, which share its seed, get different ones.
uint32_t NoiseStream(const v1::Job& job);
// What a paused job goes back to; waiting jobs find out by themselves that they wait.
v1::JobState StateAfterPause(const v1::Job& job);
inline constexpr absl::Duration kTryVolumeAgain =
    absl::Seconds(2);  // what waits for an artifacts' volume that is not there
inline constexpr absl::Duration kProgressEvery = absl::Seconds(1);  // how often a driver tells its progress
inline bool PausedForVolume(const v1::Job& job) {
  return job.reason_code() == kDiskFull || job.reason_code() == kDiskReadOnly || job.reason_code() == kDiskHangs;
}
// What becomes of a job whose artifact could not be made (`status` is not OK). A full or read-only volume is waited
// for: *unpublished says why, and `again` runs on the loop after a while, unless the job has ended by then. Anything
// else ends the job.
void FailOrTryVolumeAgain(JobHost* host, const std::string& job_id, const absl::Status& status,
                          std::string* unpublished, std::function<void()> again);
// What sampling knows of a job that generates.
void DescribeSamples(const JobsDeps& deps, const std::string& job_id, SampleFacts* facts);

}  // namespace rlhf::coordinator
