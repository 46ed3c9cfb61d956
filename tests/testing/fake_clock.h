// A clock that stands still until advanced. Thread-safe.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf {

class FakeClock final : public Clock {
 public:
  explicit FakeClock(absl::Time wall_start = absl::FromUnixSeconds(1'700'000'000)) : wall_start_(wall_start) {}
  absl::Duration Now() const override {
    absl::MutexLock lock(&mu_);
    return elapsed_;
  }
  absl::Time WallNow() const override {
    absl::MutexLock lock(&mu_);
    return wall_start_ + elapsed_ + wall_shift_;
  }
  // Sets the wall clock alone, as a person or NTP does.
  void ShiftWall(absl::Duration by) {
    absl::MutexLock lock(&mu_);
    wall_shift_ += by;
  }
  void Advance(absl::Duration by) {
    absl::MutexLock lock(&mu_);
    elapsed_ += by;
  }

 private:
  const absl::Time wall_start_;
  mutable absl::Mutex mu_;
  // Not zero: a forgotten "since" of zero must not look like a moment of this clock.
  absl::Duration elapsed_ ABSL_GUARDED_BY(mu_) = absl::Seconds(1000);
  absl::Duration wall_shift_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf
