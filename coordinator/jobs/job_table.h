// The jobs, in memory and in the store; their life cycle; one driver for each active one. Inside of Jobs.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/jobs/deleted_rows.h"
#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/job_index.h"
#include "coordinator/jobs/service_time.h"
#include "coordinator/payload_retention.h"

namespace rlhf::coordinator {

class JobTable final : public Jobs, private JobHost {
 public:
  explicit JobTable(const JobsDeps& deps) : deps_(deps) {}

  absl::Status Recover() override;
  void Submit(const std::string& subject, const v1::SubmitJobRequest& request,
              Done<v1::SubmitJobResponse> done) override;
  v1::ValidateJobResponse Validate(const v1::ValidateJobRequest& request) override;
  absl::StatusOr<v1::Job> Get(const std::string& id_or_name, const std::string& project) override;
  absl::StatusOr<v1::ListJobsResponse> List(const v1::ListJobsRequest& request) override;
  const v1::Job* Find(const std::string& job_id) const override;
  const JobCensus& census() const override { return index_.census(); }
  int64_t Visit(int64_t after, absl::FunctionRef<void(const v1::Job&)> fn) const override;
  void Cancel(const std::string& subject, const v1::CancelJobRequest& request, Done<v1::Job> done) override;
  void Pause(const std::string& subject, const v1::PauseJobRequest& request, Done<v1::Job> done) override;
  void Resume(const std::string& subject, const v1::ResumeJobRequest& request, Done<v1::Job> done) override;
  void Delete(const std::string& subject, const v1::DeleteJobRequest& request,
              Done<v1::DeleteJobResponse> done) override;
  absl::StatusOr<v1::ExplainJobResponse> Explain(const std::string& job_id, const Sees& sees) override;
  v1::Job Shown(v1::Job job, const Sees& sees) const override;
  absl::Status CheckUnused(const std::string& digest, const Sees& sees) const override;
  void NextBatch(const v1::NextBatchRequest& request,
                 Done<std::shared_ptr<const std::vector<v1::Sample>>> done) override;
  void CommitStep(const v1::CommitStepRequest& request, Done<v1::CommitStepResponse> done) override;
  void RefuseStep(const v1::RefuseStepRequest& request, Done<v1::RefuseStepResponse> done) override;
  absl::StatusOr<v1::GetCommittedResponse> GetCommitted(const std::string& job_id) override;
  void ReportProgress(const v1::ReportProgressRequest& request, Done<v1::ReportProgressResponse> done) override;
  void ReportCheckpoint(const v1::ReportCheckpointRequest& request, Done<v1::ReportCheckpointResponse> done) override;
  void FinishTraining(const v1::FinishTrainingRequest& request, Done<v1::FinishTrainingResponse> done) override;
  void FailTraining(const v1::FailTrainingRequest& request, Done<v1::FailTrainingResponse> done) override;
  void SetOutOfRoom(const std::string& why, const std::string& code) override {
    out_of_room_ = why;
    out_of_room_code_ = code;
  }
  void Tick() override;

 private:
  struct Entry {
    v1::Job job;
    std::unique_ptr<Driver> driver;  // while active
    bool admissible = false;         // durable, and waits for its turn where it has no driver
  };

  static constexpr absl::Duration kRequestsKept = absl::Hours(24);
  static absl::Status UnknownJob(const std::string& id);
  // Of pipelines that ended or were deleted under earlier releases, which left their gates waiting.
  absl::Status CloseDeadGates(WriteBatch* batch);

  // JobHost.
  const JobsDeps& deps() const override { return deps_; }
  v1::Job* Find(const std::string& job_id) override;
  void Commit(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void()> then) override;
  void CommitThen(const std::string& job_id, WriteBatch batch, absl::AnyInvocable<void(absl::Status)> done) override;
  void SetState(v1::Job* job, v1::JobState to, const std::string& reason, const std::string& code,
                WriteBatch* batch) override;
  void AppendMetrics(v1::Job* job, v1::MetricPoint point, WriteBatch* batch) override;
  void AppendMessage(v1::Job* job, const std::string& text, WriteBatch* batch) override;
  void AppendAlert(v1::Job* job, const v1::Alert& alert, WriteBatch* batch) override;
  void Succeed(const std::string& job_id, WriteBatch batch) override;
  void Fail(const std::string& job_id, const std::string& code, const std::string& reason) override;
  std::string AddStage(v1::Job* pipeline, const v1::StageSpec& stage, v1::JobSpec spec,
                       std::map<std::string, std::string> resolved, int round, int repeat, WriteBatch* batch) override;

  void DeleteCheckpoint(const std::string& digest) override { DeleteUnlessKept(digest, ""); }
  // Looks for jobs that have it behind a row of a checkpoint, some rows a turn: in time there are very many.
  void DeleteUnlessKept(const std::string& digest, const std::string& after);

  Entry* FindEntry(const std::string& job_id);
  v1::Job& Insert(v1::JobSpec spec);
  void StartDriver(const std::string& job_id);
  // Not OK of a job with what only a newer release knows: the text says of what, and what to do.
  static absl::Status CheckKnownHere(const v1::Job& job);
  void HoldForNewerRelease(Entry* entry, const absl::Status& known);
  void EndHold(Entry* entry);
  void FreeAfterEnd(const std::string& job_id);
  // Ends the job, and cancels its stages that have not ended, in one batch.
  void EndWith(const std::string& job_id, v1::JobState state, const std::string& reason, const std::string& code,
               WriteBatch batch, absl::AnyInvocable<void(absl::Status)> done);
  // All of a job's end but its row.
  void EndInto(Entry* entry, v1::JobState state, const std::string& reason, const std::string& code, WriteBatch* batch);
  // Rows included; their ids, whose watchers are to be told.
  std::vector<std::string> CancelStages(const std::string& job_id, const std::string& reason, WriteBatch* batch);
  // Pauses for want of room, or goes on after it.
  void FollowRoom(Entry* entry);
  void SetPausedTree(const std::string& job_id, bool paused, const std::string& reason, WriteBatch* batch);
  // Starts the driver if the quota of active jobs allows; else Tick tries again, by priority, then age.
  void Admit(const std::string& job_id);
  // Whose active jobs fill the quota of one that waits for its turn; empty: it may start.
  std::vector<std::string> InTheWayOf(const v1::Job& job) const;
  // The number behind which the next page of List begins.
  absl::StatusOr<int64_t> PlaceOf(const std::string& page_token, bool newest_first) const;
  JobFacts FactsOf(const Entry& entry, const Sees& sees);
  // Of one that is deleted nobody knows the project any more.
  bool Hidden(const std::string& job_id, const Sees& sees) const;
  // A job that exists and whose etag agrees, or the error.
  absl::StatusOr<v1::Job*> ForChange(const std::string& job_id, const std::string& etag);
  // The job that a specification goes on from, which is of its project; null when there is none.
  const v1::Job* StartsFrom(const v1::JobSpec& spec);
  // Resolves all references that can be, and those to `uploads`, which are not here yet; problems name the field.
  std::vector<v1::SpecProblem> ResolveReferences(v1::JobSpec* spec, std::map<std::string, std::string>* resolved,
                                                 absl::Status* first_error, const std::set<std::string>& uploads = {});
  // Erases the rows of request ids that are no longer kept, of a bounded number at a time.
  void ForgetOldRequests();
  std::string NewId(const std::string& name);
  void PutRow(v1::Job* job, WriteBatch* batch);
  template <typename Request, typename Response>
  void Route(const Request& request, Done<Response> done, void (Driver::*call)(const Request&, Done<Response>));

  const JobsDeps deps_;
  std::map<std::string, Entry> jobs_;
  std::string out_of_room_, out_of_room_code_;
  JobIndex index_;  // of jobs_
  DeletedRows deleted_{deps_.loop, deps_.store, [this] {
                         if (deps_.retention != nullptr) deps_.retention->SweepAll();
                       }};
  std::string store_failure_;                       // of the newest write that was not kept
  std::map<std::string, v1::RequestRow> requests_;  // accepted by this process, some perhaps not durable yet
  ServiceTime request_time_;                        // of created_at in those rows
  std::string requests_seen_;                       // the key up to which ForgetOldRequests has come
  absl::Duration next_requests_pass_ = absl::ZeroDuration();
};

}  // namespace rlhf::coordinator
