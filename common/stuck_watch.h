// Whether a thread that computes stands still: a process whose heartbeats go on while its device hangs would hold it
// for ever. What /healthz says 503 by.
//
// Thread-safe; one thread at a time works.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf {

class StuckWatch {
 public:
  // A piece of work that takes longer stands still; zero: nothing does.
  explicit StuckWatch(absl::Duration patience, const Clock* clock = Clock::Real())
      : patience_(patience), clock_(clock) {}

  // A piece of work, while it lives. Waits for other processes are none.
  class Work {
   public:
    explicit Work(StuckWatch* watch) : watch_(watch) {
      watch_->Begin();
      here_ = watch_;
    }
    ~Work() {
      watch_->since_ns_ = kIdle;
      here_ = nullptr;
    }
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;

   private:
    StuckWatch* const watch_;
  };
  // Within a piece of work, while it lives: this thread waits for another one, which has a watch of its own.
  class Wait {
   public:
    Wait() : watch_(here_) {
      if (watch_ != nullptr) watch_->since_ns_ = kIdle;
    }
    ~Wait() {
      if (watch_ != nullptr) watch_->Begin();
    }
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

   private:
    StuckWatch* const watch_;
  };
  // Within a piece of work: the next part of it begins. Without one: nothing.
  void Moved() {
    if (since_ns_ != kIdle) Begin();
  }
  // The same for what this thread works on, if anything: from deep below it, where a piece of a download arrived.
  static void MovedHere() {
    if (here_ != nullptr) here_->Moved();
  }
  // For people; empty while it moves or has nothing to do.
  std::string StuckBecause() const;

 private:
  static constexpr int64_t kIdle = -1;
  inline static thread_local StuckWatch* here_ = nullptr;
  void Begin() { since_ns_ = absl::ToInt64Nanoseconds(clock_->Now()); }

  const absl::Duration patience_;
  const Clock* const clock_;
  std::atomic<int64_t> since_ns_{kIdle};
};

}  // namespace rlhf
