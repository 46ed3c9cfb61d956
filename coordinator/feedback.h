// Tasks for raters and their answers: durable queues, one for each collect job. Loop thread only.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/event_loop.h"
#include "coordinator/feedback/comparison_set.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

// What of collect jobs' rows changes when a rater is forgotten.
struct ForgottenRows {
  WriteBatch batch;
  int64_t removed = 0;           // answers
  std::set<std::string> jobs;    // whose rows change
  std::set<std::string> edited;  // jobs in which an answer is SFT data
};

class Feedback {
 public:
  virtual ~Feedback() = default;
  virtual absl::Status Recover() = 0;  // before anything else
  virtual SetTable& sets() = 0;
  // Opens a collect job with its tasks (restored from rows when there are any). `changed` runs after answers, skips and
  // expiries became durable.
  virtual absl::Status OpenJob(const std::string& job_id, const std::string& project, const v1::CollectSpec& spec,
                               std::vector<v1::FeedbackTask> tasks, WriteBatch* batch,
                               std::function<void()> changed) = 0;
  // How long the job has been open: tasks of an age of task_expiry_seconds are given up at the next Tick.
  virtual void SetAge(const std::string& job_id, absl::Duration age) = 0;
  virtual bool HasTasks(const std::string& job_id) = 0;  // rows exist
  virtual void CloseJob(const std::string& job_id) = 0;
  virtual std::vector<v1::Comparison> Comparisons(
      const std::string& job_id) = 0;  // durable ones, in order of the tasks' ids
  virtual absl::StatusOr<v1::GetFeedbackStatsResponse> Stats(const std::string& job_id) = 0;
  virtual bool Finished(const std::string& job_id) const = 0;  // an open job that needs no more
  // `rater` is the caller's pseudonym. job_id is already a collect job's id (the edge resolves names and pipelines
  // through Jobs).
  virtual void NextTasks(const std::string& rater, const v1::NextTasksRequest& request,
                         Done<v1::NextTasksResponse> done) = 0;
  virtual void Submit(const std::string& rater, const v1::SubmitFeedbackRequest& request,
                      Done<v1::SubmitFeedbackResponse> done) = 0;
  virtual void Skip(const std::string& rater, const v1::SkipTaskRequest& request, Done<v1::SkipTaskResponse> done) = 0;
  // What of the rows of jobs that have ended, which nobody changes any more, goes with a rater. Reads those of all
  // jobs: for a thread beside the loop.
  virtual ForgottenRows FindAnswers(const std::string& rater, const std::set<std::string>& ended) const = 0;
  // Adds to what was found what goes of the other collect jobs' rows. All the answers go; their tasks are open again
  // where the job is. The caller commits it and then calls Reload.
  virtual void Forget(const std::string& rater, const std::vector<std::string>& others, ForgottenRows* found) = 0;
  virtual void Reload(const std::set<std::string>& jobs) = 0;
  // Changes when a rater is forgotten: what was read before may have their judgements.
  virtual int64_t forgets() const = 0;
  virtual void Tick() = 0;
};
std::unique_ptr<Feedback> MakeFeedback(EventLoop* loop, StateStore* store);

}  // namespace rlhf::coordinator
