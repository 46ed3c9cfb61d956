// The time of records whose age decides something: a wall clock that is set must make none of them old at once.
#pragma once

#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

// Begins as the wall clock's time when a store is first used, and goes on by the monotonic clocks of the coordinators
// that run on it: it stands still while none does, and up to a minute is lost when one dies. Loop thread only.
class ServiceTime {
 public:
  // Reads how far it had come. The store's errors.
  absl::Status Begin(StateStore* store, const Clock* clock);
  absl::Time Now() const { return began_ + (clock_->Now() - began_at_); }
  // Call it now and then: writes how far it has come, once a minute at most.
  void Keep();

 private:
  StateStore* store_ = nullptr;
  const Clock* clock_ = nullptr;
  absl::Time began_;                                    // this time when this process began
  absl::Duration began_at_;                             // the clock then
  absl::Duration kept_at_ = -absl::InfiniteDuration();  // the clock when it was written last
};

}  // namespace rlhf::coordinator
