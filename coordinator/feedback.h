// Tasks for raters and their answers. Loop thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

class Feedback {
 public:
  virtual ~Feedback() = default;
  // Opens a collect job with its tasks (restored from rows when there are any). `changed` runs after answers became
  // durable.
  virtual absl::Status OpenJob(const std::string& job_id, const std::string& project, const v1::CollectSpec& spec,
                               std::vector<v1::FeedbackTask> tasks, WriteBatch* batch,
                               std::function<void()> changed) = 0;
  virtual bool HasTasks(const std::string& job_id) = 0;  // rows exist
  virtual void CloseJob(const std::string& job_id) = 0;
  virtual std::vector<v1::Comparison> Comparisons(const std::string& job_id) = 0;  // durable ones, in order of task
  virtual absl::StatusOr<v1::GetFeedbackStatsResponse> Stats(const std::string& job_id) = 0;
  // `rater` is the caller's pseudonym. job_id is already a collect job's id (the edge resolves names and pipelines
  // through Jobs).
  virtual void NextTasks(const std::string& rater, const v1::NextTasksRequest& request,
                         Done<v1::NextTasksResponse> done) = 0;
  virtual void Submit(const std::string& rater, const v1::SubmitFeedbackRequest& request,
                      Done<v1::SubmitFeedbackResponse> done) = 0;
  virtual void Skip(const std::string& rater, const v1::SkipTaskRequest& request, Done<v1::SkipTaskResponse> done) = 0;
  virtual void Tick() = 0;
};
std::unique_ptr<Feedback> MakeFeedback(EventLoop* loop, StateStore* store);

}  // namespace rlhf::coordinator
