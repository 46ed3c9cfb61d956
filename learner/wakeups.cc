#include "learner/wakeups.h"

#include <algorithm>

namespace rlhf::learner {

void Wakeups::Wake() {
  absl::MutexLock lock(&mu_);
  ++count_;
}

bool Wakeups::Await(absl::FunctionRef<bool()> done, absl::Duration slice, const Clock& clock, absl::Duration deadline) {
  while (true) {
    uint64_t seen = 0;
    {
      absl::MutexLock lock(&mu_);
      seen = count_;  // whoever wakes while it is asked does so in vain otherwise
    }
    if (done()) return true;
    const absl::Duration left = deadline - clock.Now();
    if (left <= absl::ZeroDuration()) return false;
    absl::MutexLock lock(&mu_);
    const auto woken = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return count_ != seen; };
    mu_.AwaitWithTimeout(absl::Condition(&woken), std::min(left, slice));
  }
}

}  // namespace rlhf::learner
