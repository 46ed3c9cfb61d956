#include "learner/service/event_log.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/log.h"

namespace rlhf::learner {

EventLog::EventLog(std::string dir, std::string instance, size_t most_waiting)
    : most_waiting_(most_waiting), file_(dir, std::move(instance)) {
  if (!dir.empty()) thread_ = std::thread([this] { Run(); });
}

EventLog::~EventLog() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void EventLog::Begin(const std::string& job_id, int64_t next_step) {
  absl::MutexLock lock(&mu_);
  Add([this, job_id, next_step, at = absl::Now()] { file_.Begin(job_id, next_step, at); });
}

void EventLog::Step(int64_t step, const std::map<std::string, double>& metrics) {
  absl::MutexLock lock(&mu_);
  if (waiting_.size() >= most_waiting_) {
    ++left_out_;
    return;
  }
  Add([this, step, metrics, at = absl::Now()] { file_.Step(step, at, metrics); });
}

void EventLog::End() {
  absl::MutexLock lock(&mu_);
  Add([this] { file_.End(); });
}

void EventLog::Add(std::function<void()> write) {
  if (thread_.joinable()) waiting_.push_back(std::move(write));
}

void EventLog::Run() {
  while (true) {
    std::function<void()> write;
    int64_t left_out = 0;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &EventLog::Due));
      if (waiting_.empty()) return;
      write = std::move(waiting_.front());
      waiting_.pop_front();
      std::swap(left_out, left_out_);
    }
    if (left_out > 0)
      spdlog::warn("the TensorBoard events of {} steps are left out: their folder did not answer", left_out);
    write();
  }
}

}  // namespace rlhf::learner
