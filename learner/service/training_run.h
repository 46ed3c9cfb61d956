// One rank's part in one job: joins its group's collective, brings the trainer to the state the assignment starts from,
// trains, commits, checkpoints, finishes.
//
// Kept across group epochs: after a broken group the trainer still holds the committed weights, and the next epoch goes
// on from them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/evidence_log.h"
#include "common/metrics.h"
#include "common/stuck_watch.h"
#include "learner/collective.h"
#include "learner/service/coordinator_client.h"
#include "learner/service/event_log.h"
#include "learner/service/rank_meeting.h"
#include "learner/service/run_metrics.h"
#include "learner/service/weight_publisher.h"
#include "learner/trainer.h"

namespace rlhf::learner {

struct TrainingRunOptions {
  torch::Device device = torch::kCPU;
  std::string advertise_host = "127.0.0.1";  // where other ranks reach this one
  std::string weights_address;               // this process's WeightsService
  std::string work_dir;                      // private; checkpoints and models are staged here
  std::string evidence_dir, instance;        // where and as whom to keep a step log; empty: none
  std::string tensorboard_dir;               // where rank 0 keeps event files; empty: nowhere
  absl::Duration collective_timeout = absl::Seconds(20);
  absl::Duration stuck_after = absl::Minutes(10);  // longer than a micro-batch computes; 0: never
};

class TrainingRun {
 public:
  TrainingRun(CoordinatorClient* coordinator, client::ArtifactCache* artifacts, WeightPublisher* publisher,
              MetricsRegistry* metrics, const TrainingRunOptions& options);

  // Trains until the job is finished (Ok), the group broke or changed (Unavailable, Aborted or Cancelled: join again),
  // or the job cannot be trained, by this process at least (any other status: already reported to the coordinator).
  absl::Status Train(const v1::GroupAssignment& group);

  // What this rank still holds, for JoinGroup.
  const std::string& held_job() const { return held_job_; }
  const v1::PolicyVersion& held() const { return held_; }
  Share held_share() const { return trainer_ ? trainer_->share() : Share(); }
  // Wakes a blocked collective (any thread).
  void AbortCollective();
  int64_t progress() const { return progress_; }
  // At work that may take any time and exchanges nothing with other ranks (any thread).
  bool working_alone() const { return meeting_.working_alone(); }
  // Blocks while a checkpoint or the finished model is being written and reported, without which what it holds is lost
  // with the process. False: it still is, after the timeout (any thread).
  bool AwaitSaved(absl::Duration timeout);
  // Whether a step has stood still between two of its micro-batches and exchanges (StuckWatch; any thread).
  std::string StuckBecause() const { return stuck_.StuckBecause(); }

 private:
  absl::Status Connect(const v1::GroupAssignment& group);
  // Whether the trainer has the job's weights of this step.
  bool Holds(const v1::GroupAssignment& group, int64_t step) const;
  absl::Status Prepare(const v1::GroupAssignment& group);
  // Brings the trainer to the committed step the group begins with: from the ranks that hold it, else the checkpoint.
  absl::Status Restore(const v1::GroupAssignment& group, bool holds);
  absl::Status SyncFrom(const v1::GroupAssignment& group, const std::vector<int>& owners);
  absl::Status TrainSteps(const v1::GroupAssignment& group);
  absl::Status TrainLedgerStep(const v1::GroupAssignment& group, int64_t step, bool* advanced, bool* stop);
  static int CheckpointEvery(const v1::JobSpec& spec);  // 0: only at the end
  // Digests of what RunStep left on this rank; Internal when the ranks' weights differ.
  absl::StatusOr<client::StepEvidence> Witness(const v1::GroupAssignment& group, int64_t step,
                                               const std::vector<v1::Sample>& batch, const StepResult& result);
  // Notes what this rank holds, then compares it with the other ranks: Internal when they differ.
  absl::Status Agree(const v1::GroupAssignment& group, const client::StepEvidence& evidence);
  // SFT, reward models: the same at a checkpoint and at the end, which are all that is kept of their steps.
  absl::Status WitnessLocalStep(const v1::GroupAssignment& group, int64_t step);
  // Rank 0's call.
  absl::StatusOr<v1::CommitStepResponse> Commit(const v1::GroupAssignment& group, const client::StepEvidence& evidence,
                                                const StepResult& result, absl::Time trained);
  absl::Status CommitLedgerStep(const v1::GroupAssignment& group, const client::StepEvidence& evidence,
                                const StepResult& result, absl::Time trained);
  // The ranks lost each other after the step's commit was asked for: what this one holds from now on.
  void SettleCommit(const v1::GroupAssignment& group, const v1::PolicyVersion& version);
  absl::Status TrainLocalStep(const v1::GroupAssignment& group, int64_t step);
  class Saving;
  absl::Status LoadVerified(const std::string& checkpoint);
  bool ReportDue(const v1::GroupAssignment& group) const;
  absl::Status FlushProgress(const v1::GroupAssignment& group, int64_t step);
  absl::Status MaybeCheckpoint(const v1::GroupAssignment& group, int64_t step);
  absl::Status PublishCheckpoint(const v1::GroupAssignment& group, int64_t step,
                                 const std::function<absl::Status(const std::string& dir)>& write);
  // Fewer than the specification's after an early stop.
  int64_t TotalSteps(const v1::GroupAssignment& group) const;
  absl::Status FinishJob(const v1::GroupAssignment& group);
  std::string StagingFolder(const v1::GroupAssignment& group, const std::string& name) const;
  static absl::Status MakeEmpty(const std::string& dir);
  // Publishes what `write` puts into a staging folder, or what lies there already and is left by it.
  absl::StatusOr<std::string> PublishFolder(const v1::GroupAssignment& group, const std::string& name,
                                            const std::string& kind,
                                            const std::function<absl::Status(const std::string& dir)>& write);

  CoordinatorClient* coordinator_;
  client::ArtifactCache* artifacts_;
  WeightPublisher* publisher_;
  RunMetrics run_metrics_;
  TrainingRunOptions options_;
  StuckWatch stuck_;
  RankMeeting meeting_;  // of group_collective_

  std::unique_ptr<Rendezvous> rendezvous_;
  absl::Mutex mu_;
  std::shared_ptr<Collective> collective_ ABSL_GUARDED_BY(mu_);
  bool saving_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<Collective> group_collective_;  // the training thread's own reference
  std::unique_ptr<Trainer> trainer_;
  std::string held_job_;
  v1::PolicyVersion held_;
  std::vector<v1::MetricPoint> unreported_;
  client::StepLog step_log_;
  EventLog events_;
  absl::Duration last_report_ = -absl::InfiniteDuration();
  std::atomic<int64_t> progress_{0};
};

}  // namespace rlhf::learner
