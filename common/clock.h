// Time as a dependency. Deadlines use Now(), which is monotonic; wall-clock time is for people and records only.
#pragma once

#include "absl/time/time.h"

namespace rlhf {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Duration Now() const = 0;  // monotonic, since an arbitrary start
  virtual absl::Time WallNow() const = 0;  // never used for a decision
  static Clock* Real();                    // process-wide, thread-safe
};

// Stands still until advanced. Thread-safe.
class FakeClock;  // tests/testing/fake_clock.h

}  // namespace rlhf
