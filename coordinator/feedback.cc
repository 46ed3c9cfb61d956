#include "coordinator/feedback.h"

#include <algorithm>
#include <limits>
#include <list>
#include <map>
#include <set>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/comparison_line.h"
#include "coordinator/feedback/collect_queue.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

std::string RowKey(const std::string& job_id, const std::string& id) {
  return absl::StrCat(job_id, "/", id);
}

struct CollectJob {
  std::string project;
  v1::CollectSpec spec;
  std::unique_ptr<CollectQueue> queue;
  bool closed = false;
  absl::Duration age;
  std::function<void()> changed;
};

class FeedbackImpl final : public Feedback {
 public:
  FeedbackImpl(EventLoop* loop, StateStore* store) : loop_(loop), store_(store) {}

  absl::Status Recover() override {
    RLHF_ASSIGN_OR_RETURN(sets_, SetTable::Load(store_));
    return absl::OkStatus();
  }
  SetTable& sets() override { return sets_; }

  absl::Status OpenJob(const std::string& job_id, const std::string& project, const v1::CollectSpec& spec,
                       std::vector<v1::FeedbackTask> tasks, WriteBatch* batch, std::function<void()> changed) override {
    CollectJob job;
    job.project = project;
    job.spec = spec;
    job.changed = std::move(changed);
    if (HasTasks(job_id)) {
      RLHF_ASSIGN_OR_RETURN(job.queue, Restore(job_id, project, spec));
      job.queue->Restarted(loop_->clock().Now());
    } else {
      job.queue = std::make_unique<CollectQueue>(project, spec);
      for (v1::FeedbackTask& task : tasks) {
        batch->Put(Table::kFeedbackTasks, RowKey(job_id, task.id()), task.SerializeAsString());
        job.queue->Add(std::move(task));
      }
    }
    jobs_[job_id] = std::move(job);
    loop_->Post([this] { ServeWaiters(); });
    return absl::OkStatus();
  }

  void SetAge(const std::string& job_id, absl::Duration age) override {
    if (const auto it = jobs_.find(job_id); it != jobs_.end()) it->second.age = age;
  }

  bool HasTasks(const std::string& job_id) override {
    bool any = false;
    (void)store_->Scan(Table::kFeedbackTasks, RowKey(job_id, ""), [&](absl::string_view, absl::string_view) {
      any = true;
      return false;
    });
    return any;
  }

  void CloseJob(const std::string& job_id) override {
    if (const auto it = jobs_.find(job_id); it != jobs_.end()) it->second.closed = true;
    ServeWaiters();
    jobs_.erase(job_id);
  }

  std::vector<v1::Comparison> Comparisons(const std::string& job_id) override {
    std::vector<v1::Comparison> out;
    (void)store_->Scan(Table::kComparisons, RowKey(job_id, ""), [&](absl::string_view, absl::string_view value) {
      out.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()));
      return true;
    });
    return out;
  }

  absl::StatusOr<v1::GetFeedbackStatsResponse> Stats(const std::string& job_id) override {
    if (const auto it = jobs_.find(job_id); it != jobs_.end()) return it->second.queue->Stats();
    if (!HasTasks(job_id)) return absl::NotFoundError(absl::StrCat("job ", job_id, " has no feedback tasks"));
    v1::CollectSpec spec;
    spec.set_comparisons(std::numeric_limits<int32_t>::max());
    RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<CollectQueue> queue, Restore(job_id, "", spec));
    v1::GetFeedbackStatsResponse stats = queue->Stats();
    stats.set_open(0);  // nothing is handed out of a job that has ended
    return stats;
  }

  bool Finished(const std::string& job_id) const override {
    const auto it = jobs_.find(job_id);
    return it != jobs_.end() && it->second.queue->finished();
  }

  void NextTasks(const std::string& rater, const v1::NextTasksRequest& request,
                 Done<v1::NextTasksResponse> done) override {
    waiters_.push_back({rater, request, std::move(done), loop_->clock().Now() + absl::Milliseconds(request.wait_ms())});
    ServeWaiters();
    ExpireWaiters();
  }

  void Submit(const std::string& rater, const v1::SubmitFeedbackRequest& request,
              Done<v1::SubmitFeedbackResponse> done) override {
    v1::SubmitFeedbackResponse response;
    WriteBatch batch;
    std::set<std::string> touched;
    for (const v1::Answer& answer : request.answers()) {
      v1::AnswerVerdict& verdict = *response.add_verdicts();
      verdict.set_task_id(answer.task_id());
      const std::string problem = Take(rater, answer, &batch);
      verdict.set_accepted(problem.empty());
      verdict.set_problem(problem);
      touched.insert(answer.job_id());
    }
    store_->Commit(std::move(batch), [this, touched, response = std::move(response),
                                      done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      loop_->Post([this, touched] {
        for (const std::string& job_id : touched) Changed(job_id);
      });
      done(std::move(response));
    });
  }

  void Skip(const std::string& rater, const v1::SkipTaskRequest& request, Done<v1::SkipTaskResponse> done) override {
    const auto job = jobs_.find(request.job_id());
    if (job == jobs_.end()) return done(NotOpen(request.job_id()));
    v1::FeedbackTask changed;
    const absl::Status skipped = job->second.queue->Skip(rater, request.task_id(), &changed);
    if (!skipped.ok()) return done(skipped);
    WriteBatch batch;
    batch.Put(Table::kFeedbackTasks, RowKey(request.job_id(), request.task_id()), changed.SerializeAsString());
    store_->Commit(std::move(batch),
                   [this, job_id = request.job_id(), done = std::move(done)](absl::Status status) mutable {
                     if (!status.ok()) return done(status);
                     loop_->Post([this, job_id] {
                       Changed(job_id);
                       ServeWaiters();
                     });
                     done(v1::SkipTaskResponse());
                   });
  }

  ForgottenRows FindAnswers(const std::string& rater, const std::set<std::string>& ended) const override {
    ForgottenRows found;
    AddForgotten(
        rater, "", [&ended](const std::string& job_id) { return ended.count(job_id) > 0; }, &found);
    return found;
  }
  void Forget(const std::string& rater, const std::vector<std::string>& others, ForgottenRows* found) override {
    ++forgets_;
    for (const std::string& job_id : others)
      AddForgotten(
          rater, RowKey(job_id, ""), [](const std::string&) { return true; }, found);
  }

  void Reload(const std::set<std::string>& jobs) override {
    ++forgets_;
    for (const std::string& job_id : jobs) {
      const auto it = jobs_.find(job_id);
      if (it == jobs_.end()) continue;
      auto queue = Restore(job_id, it->second.project, it->second.spec);
      if (!queue.ok()) continue;
      (*queue)->TakeOverHolders(*it->second.queue);
      it->second.queue = *std::move(queue);
    }
    ServeWaiters();
  }

  int64_t forgets() const override { return forgets_; }

  void Tick() override {
    std::vector<std::string> expired;
    WriteBatch batch;
    for (auto& [id, job] : jobs_) {
      job.queue->TakeBackLate(loop_->clock().Now());
      for (const v1::FeedbackTask& task : job.queue->Expire(job.age)) {
        batch.Put(Table::kFeedbackTasks, RowKey(id, task.id()), task.SerializeAsString());
        if (expired.empty() || expired.back() != id) expired.push_back(id);
      }
    }
    if (!expired.empty()) {
      store_->Commit(std::move(batch), [this, expired](absl::Status status) {
        if (!status.ok()) return;
        loop_->Post([this, expired] {
          for (const std::string& id : expired) Changed(id);
        });
      });
    }
    ServeWaiters();
    ExpireWaiters();
  }

 private:
  // Of the rows with the prefix. Any thread.
  void AddForgotten(const std::string& rater, const std::string& prefix,
                    absl::FunctionRef<bool(const std::string&)> wanted, ForgottenRows* found) const {
    std::set<std::string> reopened;
    (void)store_->Scan(Table::kComparisons, prefix, [&](absl::string_view key, absl::string_view value) {
      const std::string job_id(key.substr(0, key.find('/')));
      v1::Comparison comparison;
      if (!wanted(job_id) || !comparison.ParseFromArray(value.data(), static_cast<int>(value.size())) ||
          comparison.rater() != rater)
        return true;
      found->batch.Erase(Table::kComparisons, std::string(key));
      ++found->removed;
      found->jobs.insert(job_id);
      if (!SftLine(comparison).empty()) found->edited.insert(job_id);
      reopened.insert(RowKey(job_id, comparison.task_id()));
      return true;
    });
    (void)store_->Scan(Table::kFeedbackTasks, prefix, [&](absl::string_view key, absl::string_view value) {
      v1::FeedbackTask task;
      if (!wanted(std::string(key.substr(0, key.find('/')))) ||
          !task.ParseFromArray(value.data(), static_cast<int>(value.size())))
        return true;
      const auto skipped = std::find(task.skipped_by().begin(), task.skipped_by().end(), rater);
      const bool answered = reopened.count(std::string(key)) > 0;
      if (!answered && skipped == task.skipped_by().end() && task.rater() != rater) return true;
      if (skipped != task.skipped_by().end()) task.mutable_skipped_by()->erase(skipped);
      if (task.rater() == rater) task.clear_rater();
      if (answered && task.state() == v1::TASK_ANSWERED) task.set_state(v1::TASK_OPEN);
      found->batch.Put(Table::kFeedbackTasks, std::string(key), task.SerializeAsString());
      found->jobs.insert(task.job_id());
      return true;
    });
  }

  struct Waiter {
    std::string rater;
    v1::NextTasksRequest request;
    Done<v1::NextTasksResponse> done;
    absl::Duration deadline;
  };

  static absl::Status NotOpen(const std::string& job_id) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat("job ", job_id, " collects no answers now")),
                      v1::JOB_NOT_ACTIVE);
  }

  void Changed(const std::string& job_id) {
    const auto it = jobs_.find(job_id);
    if (it == jobs_.end() || !it->second.changed) return;
    const std::function<void()> changed = it->second.changed;  // it may close the job
    changed();
  }

  absl::StatusOr<std::unique_ptr<CollectQueue>> Restore(const std::string& job_id, const std::string& project,
                                                        const v1::CollectSpec& spec) {
    auto queue = std::make_unique<CollectQueue>(project, spec);
    std::vector<v1::FeedbackTask> tasks;
    RLHF_RETURN_IF_ERROR(
        store_->Scan(Table::kFeedbackTasks, RowKey(job_id, ""), [&](absl::string_view, absl::string_view value) {
          tasks.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()));
          return true;
        }));
    // As they were made: ids do not tell where there are planted questions.
    std::stable_sort(tasks.begin(), tasks.end(), [](const v1::FeedbackTask& a, const v1::FeedbackTask& b) {
      return FromTimestamp(a.created_at()) < FromTimestamp(b.created_at());
    });
    for (v1::FeedbackTask& task : tasks) queue->Add(std::move(task));
    RLHF_RETURN_IF_ERROR(
        store_->Scan(Table::kComparisons, RowKey(job_id, ""), [&](absl::string_view, absl::string_view value) {
          v1::Comparison comparison;
          comparison.ParseFromArray(value.data(), static_cast<int>(value.size()));
          queue->Restore(comparison);
          return true;
        }));
    return queue;
  }

  // Which open job a request means; null when none.
  CollectJob* JobOf(const v1::NextTasksRequest& request) {
    if (!request.job_id().empty()) {
      const auto it = jobs_.find(request.job_id());
      return it == jobs_.end() ? nullptr : &it->second;
    }
    for (auto& [id, job] : jobs_) {
      if (request.project().empty() || job.project == request.project()) return &job;
    }
    return nullptr;
  }

  v1::NextTasksResponse Ask(const Waiter& waiter, bool hand_out) {
    v1::NextTasksResponse response;
    CollectJob* job = JobOf(waiter.request);
    if (job == nullptr) return response;
    if (hand_out && !job->closed)
      job->queue->HandOut(waiter.rater, std::max(1, waiter.request.max_tasks()), loop_->clock().Now(), &response);
    job->queue->AddCounts(waiter.rater, &response);
    response.set_closed(job->closed || job->queue->finished());
    return response;
  }

  void ServeWaiters() {
    for (auto it = waiters_.begin(); it != waiters_.end();) {
      v1::NextTasksResponse response = Ask(*it, /*hand_out=*/true);
      if (response.tasks().empty() && !response.closed()) {
        ++it;
        continue;
      }
      Done<v1::NextTasksResponse> done = std::move(it->done);
      it = waiters_.erase(it);
      done(std::move(response));
    }
  }

  void ExpireWaiters() {
    const absl::Duration now = loop_->clock().Now();
    for (auto it = waiters_.begin(); it != waiters_.end();) {
      if (now < it->deadline) {
        ++it;
        continue;
      }
      v1::NextTasksResponse response = Ask(*it, /*hand_out=*/false);
      Done<v1::NextTasksResponse> done = std::move(it->done);
      it = waiters_.erase(it);
      done(std::move(response));
    }
  }

  // Empty: accepted.
  std::string Take(const std::string& rater, const v1::Answer& answer, WriteBatch* batch) {
    const auto job = jobs_.find(answer.job_id());
    if (job == jobs_.end()) return absl::StrCat("job ", answer.job_id(), " collects no answers now");
    const CollectQueue::Taken taken = job->second.queue->Take(rater, answer, loop_->clock().WallNow());
    if (!taken.fresh) return taken.problem;
    batch->Put(Table::kComparisons, RowKey(answer.job_id(), taken.comparison.id()),
               taken.comparison.SerializeAsString());
    if (taken.task_changed) {
      batch->Put(Table::kFeedbackTasks, RowKey(answer.job_id(), answer.task_id()), taken.task.SerializeAsString());
    }
    return "";
  }

  EventLoop* const loop_;
  StateStore* const store_;
  std::map<std::string, CollectJob> jobs_;
  std::list<Waiter> waiters_;
  SetTable sets_;
  int64_t forgets_ = 0;
};

}  // namespace

std::unique_ptr<Feedback> MakeFeedback(EventLoop* loop, StateStore* store) {
  return std::make_unique<FeedbackImpl>(loop, store);
}

}  // namespace rlhf::coordinator
