// The coordinator's loop, turned by the test: nothing runs but what the test lets run, on a clock of its own.
#pragma once

#include <deque>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/event_loop.h"
#include "tests/testing/fake_clock.h"

namespace rlhf::coordinator {

class ManualLoop final : public EventLoop {
 public:
  explicit ManualLoop(FakeClock* clock) : clock_(clock) {}
  void Post(absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    ready_.push_back(std::move(fn));
  }
  void PostAfter(absl::Duration delay, absl::AnyInvocable<void()> fn) override {
    absl::MutexLock lock(&mu_);
    delayed_.emplace(clock_->Now() + delay, std::move(fn));
  }
  const Clock& clock() const override { return *clock_; }
  void Stop() override {}

  // Runs what is posted and due, and what that posts.
  void Run() {
    while (true) {
      absl::AnyInvocable<void()> fn;
      {
        absl::MutexLock lock(&mu_);
        if (!delayed_.empty() && delayed_.begin()->first <= clock_->Now()) {
          ready_.push_back(std::move(delayed_.begin()->second));
          delayed_.erase(delayed_.begin());
        }
        if (ready_.empty()) return;
        fn = std::move(ready_.front());
        ready_.pop_front();
      }
      std::move(fn)();
    }
  }

 private:
  FakeClock* const clock_;
  absl::Mutex mu_;
  std::deque<absl::AnyInvocable<void()>> ready_ ABSL_GUARDED_BY(mu_);
  std::multimap<absl::Duration, absl::AnyInvocable<void()>> delayed_ ABSL_GUARDED_BY(mu_);
};

// Work at once, on the thread that asks.
class InlineBackground final : public Background {
 public:
  void Run(absl::AnyInvocable<void()> fn) override { std::move(fn)(); }
};

// Work when the test says so.
class QueuedBackground final : public Background {
 public:
  void Run(absl::AnyInvocable<void()> fn) override { work_.push_back(std::move(fn)); }
  void RunAll() {
    while (!work_.empty()) {
      absl::AnyInvocable<void()> fn = std::move(work_.front());
      work_.pop_front();
      std::move(fn)();
    }
  }

 private:
  std::deque<absl::AnyInvocable<void()>> work_;
};

}  // namespace rlhf::coordinator
