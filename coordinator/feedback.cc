#include "coordinator/feedback.h"

#include <algorithm>
#include <list>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

std::string RowKey(const std::string& job_id, const std::string& id) {
  return absl::StrCat(job_id, "/", id);
}

struct OpenTask {
  v1::FeedbackTask task;
  std::set<std::string> answered_by;
  std::map<std::string, absl::Duration>
      held_by;  // rater to when it goes back to the queue; not durable: a restart reopens it
};

struct CollectJob {
  std::string project;
  v1::CollectSpec spec;
  std::vector<std::string> order;
  std::map<std::string, OpenTask> tasks;
  std::map<std::string, int64_t> by_rater;
  int64_t answered = 0;   // tasks with all the answers asked for
  size_t first_open = 0;  // into order: everything before is answered
  bool closed = false;
  std::function<void()> changed;
};

class FeedbackImpl final : public Feedback {
 public:
  FeedbackImpl(EventLoop* loop, StateStore* store) : loop_(loop), store_(store) {}

  absl::Status OpenJob(const std::string& job_id, const std::string& project, const v1::CollectSpec& spec,
                       std::vector<v1::FeedbackTask> tasks, WriteBatch* batch, std::function<void()> changed) override {
    CollectJob job;
    job.project = project;
    job.spec = spec;
    job.changed = std::move(changed);
    if (HasTasks(job_id)) {
      RLHF_RETURN_IF_ERROR(Restore(job_id, &job));
    } else {
      for (v1::FeedbackTask& task : tasks) {
        batch->Put(Table::kFeedbackTasks, RowKey(job_id, task.id()), task.SerializeAsString());
        job.order.push_back(task.id());
        job.tasks[task.id()].task = std::move(task);
      }
    }
    jobs_[job_id] = std::move(job);
    loop_->Post([this] { ServeWaiters(); });
    return absl::OkStatus();
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
    v1::GetFeedbackStatsResponse stats;
    if (const auto it = jobs_.find(job_id); it != jobs_.end()) {
      const CollectJob& job = it->second;
      for (const auto& [id, task] : job.tasks) {
        if (task.task.state() == v1::TASK_ANSWERED) continue;
        if (task.task.state() == v1::TASK_SKIPPED)
          stats.set_skipped(stats.skipped() + 1);
        else if (task.held_by.empty())
          stats.set_open(stats.open() + 1);
        else
          stats.set_handed_out(stats.handed_out() + 1);
      }
      stats.set_answered(job.answered);
      stats.set_wanted(Wanted(job));
      stats.mutable_by_rater()->insert(job.by_rater.begin(), job.by_rater.end());
      return stats;
    }
    if (!HasTasks(job_id)) return absl::NotFoundError(absl::StrCat("job ", job_id, " has no feedback tasks"));
    CollectJob job;
    RLHF_RETURN_IF_ERROR(Restore(job_id, &job));
    stats.set_answered(job.answered);
    stats.set_wanted(static_cast<int64_t>(job.order.size()));
    stats.mutable_by_rater()->insert(job.by_rater.begin(), job.by_rater.end());
    return stats;
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
        for (const std::string& job_id : touched) {
          if (const auto it = jobs_.find(job_id); it != jobs_.end() && it->second.changed) {
            const std::function<void()> changed = it->second.changed;  // it may close the job
            changed();
          }
        }
      });
      done(std::move(response));
    });
  }

  void Skip(const std::string& rater, const v1::SkipTaskRequest& request, Done<v1::SkipTaskResponse> done) override {
    const auto job = jobs_.find(request.job_id());
    if (job == jobs_.end()) return done(NotOpen(request.job_id()));
    const auto task = job->second.tasks.find(request.task_id());
    if (task == job->second.tasks.end())
      return done(absl::NotFoundError(absl::StrCat("no task ", request.task_id(), " in job ", request.job_id())));
    if (task->second.held_by.count(rater) == 0)
      return done(absl::FailedPreconditionError("this task is not handed to you (any more)"));
    task->second.held_by.erase(rater);
    task->second.task.set_state(v1::TASK_SKIPPED);
    WriteBatch batch;
    batch.Put(Table::kFeedbackTasks, RowKey(request.job_id(), request.task_id()),
              task->second.task.SerializeAsString());
    store_->Commit(std::move(batch),
                   [this, job_id = request.job_id(), done = std::move(done)](absl::Status status) mutable {
                     if (!status.ok()) return done(status);
                     loop_->Post([this, job_id] {
                       if (const auto it = jobs_.find(job_id); it != jobs_.end() && it->second.changed) {
                         const std::function<void()> changed = it->second.changed;
                         changed();
                       }
                     });
                     done(v1::SkipTaskResponse());
                   });
  }

  void Tick() override {
    const absl::Duration now = loop_->clock().Now();
    for (auto& [id, job] : jobs_) {
      for (auto& [task_id, task] : job.tasks) {
        std::erase_if(task.held_by, [&](const auto& held) { return now > held.second; });
      }
    }
    ServeWaiters();
    ExpireWaiters();
  }

 private:
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
  static int Overlap(const CollectJob& job) { return std::max(1, job.spec.overlap()); }
  static int64_t Wanted(const CollectJob& job) {
    return std::min<int64_t>(job.spec.comparisons(), static_cast<int64_t>(job.order.size()));
  }

  absl::Status Restore(const std::string& job_id, CollectJob* job) {
    RLHF_RETURN_IF_ERROR(
        store_->Scan(Table::kFeedbackTasks, RowKey(job_id, ""), [&](absl::string_view, absl::string_view value) {
          v1::FeedbackTask task;
          task.ParseFromArray(value.data(), static_cast<int>(value.size()));
          job->order.push_back(task.id());
          if (task.state() == v1::TASK_ANSWERED) ++job->answered;
          job->tasks[task.id()].task = std::move(task);
          return true;
        }));
    return store_->Scan(Table::kComparisons, RowKey(job_id, ""), [&](absl::string_view, absl::string_view value) {
      v1::Comparison comparison;
      comparison.ParseFromArray(value.data(), static_cast<int>(value.size()));
      ++job->by_rater[comparison.rater()];
      if (const auto it = job->tasks.find(comparison.task_id()); it != job->tasks.end())
        it->second.answered_by.insert(comparison.rater());
      return true;
    });
  }

  void HandOut(const std::string& rater, int most, CollectJob* job, v1::NextTasksResponse* response) {
    const int64_t seconds = job->spec.task_timeout_seconds() > 0 ? job->spec.task_timeout_seconds() : 600;
    const absl::Duration until = loop_->clock().Now() + absl::Seconds(seconds);
    while (job->first_open < job->order.size() &&
           job->tasks[job->order[job->first_open]].task.state() == v1::TASK_ANSWERED)
      ++job->first_open;
    for (size_t i = job->first_open; i < job->order.size() && response->tasks_size() < most; ++i) {
      OpenTask& task = job->tasks[job->order[i]];
      if (task.task.state() != v1::TASK_OPEN || task.answered_by.count(rater) > 0 || task.held_by.count(rater) > 0)
        continue;
      if (static_cast<int>(task.answered_by.size() + task.held_by.size()) >= Overlap(*job)) continue;
      task.held_by[rater] = until;
      v1::FeedbackTask& handed = *response->add_tasks();
      handed = task.task;
      handed.set_state(v1::TASK_HANDED_OUT);
      handed.set_rater(rater);
    }
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

  void ServeWaiters() {
    for (auto it = waiters_.begin(); it != waiters_.end();) {
      v1::NextTasksResponse response;
      CollectJob* job = JobOf(it->request);
      if (job != nullptr && !job->closed) HandOut(it->rater, std::max(1, it->request.max_tasks()), job, &response);
      if (job != nullptr) {
        response.set_answered(job->answered);
        response.set_wanted(Wanted(*job));
        response.set_closed(job->closed || job->answered >= Wanted(*job));
      }
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
      v1::NextTasksResponse response;
      if (const CollectJob* job = JobOf(it->request)) {
        response.set_answered(job->answered);
        response.set_wanted(Wanted(*job));
      }
      Done<v1::NextTasksResponse> done = std::move(it->done);
      it = waiters_.erase(it);
      done(std::move(response));
    }
  }

  // Empty: accepted.
  std::string Take(const std::string& rater, const v1::Answer& answer, WriteBatch* batch) {
    const auto job_it = jobs_.find(answer.job_id());
    if (job_it == jobs_.end()) return absl::StrCat("job ", answer.job_id(), " collects no answers now");
    CollectJob& job = job_it->second;
    const auto it = job.tasks.find(answer.task_id());
    if (it == job.tasks.end()) return absl::StrCat("no such task in job ", answer.job_id());
    OpenTask& open = it->second;
    if (open.answered_by.count(rater) > 0) return "";  // the first answer counts; its reply may have been lost
    if (open.task.state() == v1::TASK_ANSWERED) return "already answered";
    if (answer.preference() != v1::FIRST && answer.preference() != v1::SECOND && answer.preference() != v1::TIE) {
      return "preference: expected FIRST, SECOND or TIE";
    }
    if (!(answer.strength() >= 0 && answer.strength() <= 1))
      return absl::StrCat("strength: expected 0 to 1, found ", answer.strength());
    const bool writes = open.task.second().source() == "written" && open.task.second().text().empty();
    if (writes && answer.written().empty())
      return "written: this task asks for an answer in your own words, found none";
    if (!writes && !answer.written().empty()) return "written: this task compares two given answers";
    const int64_t ordinal = static_cast<int64_t>(open.answered_by.size());
    v1::Comparison comparison;
    comparison.set_id(Overlap(job) == 1 ? answer.task_id() : absl::StrCat(answer.task_id(), "-", ordinal));
    comparison.set_project(job.project);
    comparison.set_task_id(answer.task_id());
    *comparison.mutable_prompt() = open.task.prompt();
    *comparison.mutable_first() = open.task.first();
    *comparison.mutable_second() = open.task.second();
    if (writes) comparison.mutable_second()->set_text(answer.written());
    comparison.set_preference(answer.preference());
    comparison.set_strength(answer.strength());
    *comparison.mutable_first_ratings() = answer.first_ratings();
    *comparison.mutable_second_ratings() = answer.second_ratings();
    comparison.set_comment(answer.comment());
    comparison.set_rater(rater);
    *comparison.mutable_created_at() = ToTimestamp(loop_->clock().WallNow());
    *comparison.mutable_tags() = answer.tags();
    batch->Put(Table::kComparisons, RowKey(answer.job_id(), comparison.id()), comparison.SerializeAsString());
    open.answered_by.insert(rater);
    open.held_by.erase(rater);
    ++job.by_rater[rater];
    if (static_cast<int>(open.answered_by.size()) >= Overlap(job)) {
      open.task.set_state(v1::TASK_ANSWERED);
      open.task.set_rater(rater);
      ++job.answered;
      batch->Put(Table::kFeedbackTasks, RowKey(answer.job_id(), answer.task_id()), open.task.SerializeAsString());
    }
    return "";
  }

  EventLoop* const loop_;
  StateStore* const store_;
  std::map<std::string, CollectJob> jobs_;
  std::list<Waiter> waiters_;
};

}  // namespace

std::unique_ptr<Feedback> MakeFeedback(EventLoop* loop, StateStore* store) {
  return std::make_unique<FeedbackImpl>(loop, store);
}

}  // namespace rlhf::coordinator
