#include "coordinator/event_loop.h"

#include <deque>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace rlhf::coordinator {
namespace {

class ThreadLoop final : public EventLoop {
 public:
  explicit ThreadLoop(Clock* clock) : clock_(clock), thread_([this] { Run(); }) {}
  ~ThreadLoop() override { Stop(); }

  void Post(absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    if (!finished_) ready_.push_back(std::move(fn));
  }
  void PostAfter(absl::Duration delay, absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    if (!stopping_) delayed_.emplace(clock_->Now() + delay, std::move(fn));
  }
  const Clock& clock() const override { return *clock_; }
  void Stop() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
      delayed_.clear();
    }
    absl::MutexLock lock(&join_mu_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !ready_.empty() || stopping_; }

  void Run() {
    while (true) {
      std::deque<absl::AnyInvocable<void()>> work;
      {
        absl::MutexLock lock(&mu_);
        const size_t timers = delayed_.size();
        absl::Duration wait = absl::Milliseconds(20);  // bounds how late a timer that was added meanwhile fires
        if (timers > 0) wait = std::min(wait, std::max(absl::ZeroDuration(), delayed_.begin()->first - clock_->Now()));
        mu_.AwaitWithTimeout(absl::Condition(this, &ThreadLoop::HasWork), wait);
        work.swap(ready_);
        while (!delayed_.empty() && delayed_.begin()->first <= clock_->Now()) {
          work.push_back(std::move(delayed_.begin()->second));
          delayed_.erase(delayed_.begin());
        }
        if (work.empty() && stopping_) {
          finished_ = true;
          return;
        }
      }
      for (auto& fn : work) std::move(fn)();
    }
  }

  Clock* const clock_;
  absl::Mutex mu_;
  std::deque<absl::AnyInvocable<void()>> ready_ ABSL_GUARDED_BY(mu_);
  std::multimap<absl::Duration, absl::AnyInvocable<void()>> delayed_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  absl::Mutex join_mu_;
  std::thread thread_;
};

class BackgroundThreads final : public Background {
 public:
  explicit BackgroundThreads(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~BackgroundThreads() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }
  void Run(absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    queue_.push_back(std::move(fn));
  }
  size_t waiting() const override {
    absl::MutexLock lock(&mu_);
    return queue_.size();
  }

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty() || stopping_; }
  void Work() {
    while (true) {
      absl::AnyInvocable<void()> fn;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &BackgroundThreads::HasWork));
        if (queue_.empty()) return;
        fn = std::move(queue_.front());
        queue_.pop_front();
      }
      std::move(fn)();
    }
  }

  mutable absl::Mutex mu_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<EventLoop> EventLoop::StartThread(Clock* clock) {
  return std::make_unique<ThreadLoop>(clock);
}
std::unique_ptr<Background> Background::StartThreads(int threads) {
  return std::make_unique<BackgroundThreads>(threads);
}

}  // namespace rlhf::coordinator
