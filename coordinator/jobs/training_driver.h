// A job that trains without a ledger (sft, reward_model): its learner group, which it leaves for a pause or for a job
// of higher priority, and its checkpoints. PpoDriver builds on it.
#pragma once

#include <string>

#include "coordinator/jobs/checkpoint_chain.h"
#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

class TrainingDriver : public Driver, protected TrainingListener {
 public:
  TrainingDriver(JobHost* host, std::string job_id)
      : host_(host), job_id_(std::move(job_id)), checkpoints_(host_, job_id_) {}

  void Start() override;
  void Stop(WriteBatch* batch) override;
  // Paused, it saves a checkpoint at the end of its step and leaves its learners; later it goes on from there.
  void SetPaused(bool paused, WriteBatch* batch) override;
  void Describe(JobFacts* facts) override;
  void Tick() override;
  void ReportProgress(const v1::ReportProgressRequest& request, Done<v1::ReportProgressResponse> done) override;
  void ReportCheckpoint(const v1::ReportCheckpointRequest& request, Done<v1::ReportCheckpointResponse> done) override;
  void FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) override;
  void FailTraining(const v1::FailTrainingRequest& request, Done<v1::FailTrainingResponse> done) override;

 protected:
  v1::GroupAssignment OnGroupForming(const std::string& job_id, uint64_t epoch, int ranks,
                                     const v1::PolicyVersion* held, const std::string& rank0_address) override;
  int64_t StepOf(const std::string& job_id) const override;
  void OnGroupLost(const std::string& job_id, const std::string& why) override;
  // The newest checkpoint cannot be read: the one before takes its place, and the group forms anew.
  void GoBackACheckpoint(const std::string& why, Done<v1::FailTrainingResponse> done);
  void OnYield(const std::string& job_id, const std::string& to) override;
  // The step is over and the learners are another's: this job waits, and goes on from its checkpoint.
  virtual void Yield();
  // On the loop, if the job and its driver are still there; once_saved: and its newest step is in a checkpoint.
  static void YieldSoon(JobHost* host, const std::string& job_id, EventLoop* loop, TrainingDriver* driver,
                        bool once_saved = false);
  // Whether a pause ends its group; a job whose steps need samples keeps it and gets none.
  virtual bool leaves_when_paused() const { return true; }
  // Whether its ranks wait for samples, so that no end of a step is near.
  virtual bool between_steps() const { return false; }
  // What every assignment of this job has, from the job's row.
  v1::GroupAssignment Assignment(uint64_t epoch) const;
  // The result was durable before a restart and only the job's end was not: ends it.
  bool FinishedBefore();
  void BeginEpoch(uint64_t epoch, int ranks, WriteBatch* batch);  // a group forms
  void Enroll();                                                  // asks for a learner group
  void Withdraw();                        // asks for none any more; members find that their epoch is over
  void RunsIfGrouped(WriteBatch* batch);  // a job whose group formed while it was paused, when the pause ends
  bool leaving() const { return withdraws_ || !yields_to_.empty(); }
  v1::Job* job() const { return host_->Find(job_id_); }
  const JobsDeps& deps() const { return host_->deps(); }

  JobHost* const host_;
  const std::string job_id_;
  CheckpointChain checkpoints_;
  bool grouped_ = false;
  bool enrolled_ = false;
  int64_t reported_step_ = 0;   // the last one, of a replay too
  bool group_trained_ = false;  // the newest group has ended a step, of a replay too
  int ranks_ = 0;               // of the newest group; 0: none since the coordinator's start
  bool withdraws_ = false;      // for a pause, at the end of the step, and stays away until it ends
  std::string yields_to_;       // the job that is to have its learners at the end of the step
  absl::Duration yields_since_ = absl::ZeroDuration();
  absl::Duration waiting_since_ = absl::ZeroDuration();
};

}  // namespace rlhf::coordinator
