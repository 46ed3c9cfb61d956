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

}  // namespace rlhf::coordinator
