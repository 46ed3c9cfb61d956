// The time by which the coordinator judges others: monotonic, without the time in which its own loop stood still
// (SIGSTOP, a machine that was paused, a disk that hung). What waited to be read meanwhile, heartbeats above all, is
// read before anybody is late.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::coordinator {

// Thread-safe.
class LoopClock final : public Clock {
 public:
  // From one turn of the loop to the next this clock goes on by at most so long; what took longer is left out.
  static constexpr absl::Duration kLongestTurn = absl::Seconds(1);

  explicit LoopClock(const Clock* clock);
  absl::Duration Now() const override;
  absl::Time WallNow() const override { return clock_->WallNow(); }
  // For the loop, much more often than kLongestTurn. Returns what was left out since the turn before.
  absl::Duration Turn();

 private:
  const Clock* const clock_;
  mutable absl::Mutex mu_;
  absl::Duration left_out_ ABSL_GUARDED_BY(mu_), limit_ ABSL_GUARDED_BY(mu_);  // the latter of this clock
};

// The time by which those judge the coordinator whose calls wait for an answer. It goes on while the loop stands still,
// and many have given their calls up by then, which nobody has read yet. Loop thread only.
class CallersTime {
 public:
  // callers: the clock that LoopClock was made of; null: the loop's own, which never stands still then.
  CallersTime(const Clock* loop, const Clock* callers);
  absl::Duration Now() const { return callers_->Now(); }
  // The loop stood still a moment ago: what came meanwhile, the end of calls among it, is to be read before any call
  // that waits is answered.
  bool Settling();
  // A call was not seen to in time, and its caller may be about to give it up.
  bool TooLate(absl::Duration deadline) const { return Now() > deadline + kLate; }

 private:
  static constexpr absl::Duration kLate = absl::Seconds(1);
  // By so much the loop's clock falls behind when it stood still; for so long nothing is answered then.
  static constexpr absl::Duration kStoodStill = absl::Milliseconds(500), kSettle = absl::Milliseconds(300);
  const Clock* const loop_;
  const Clock* const callers_;
  absl::Duration left_out_;  // how far the loop's clock is behind the callers'
  absl::Duration settled_from_ = -absl::InfiniteDuration();
};

}  // namespace rlhf::coordinator
