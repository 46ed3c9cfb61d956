#include "coordinator/loop_clock.h"

#include <algorithm>

namespace rlhf::coordinator {

LoopClock::LoopClock(const Clock* clock) : clock_(clock), limit_(clock->Now() + kLongestTurn) {}

absl::Duration LoopClock::Now() const {
  absl::MutexLock lock(&mu_);
  return std::min(clock_->Now() - left_out_, limit_);
}

absl::Duration LoopClock::Turn() {
  absl::MutexLock lock(&mu_);
  const absl::Duration now = clock_->Now() - left_out_;
  const absl::Duration late = std::max(absl::ZeroDuration(), now - limit_);
  left_out_ += late;
  limit_ = now - late + kLongestTurn;
  return late;
}

}  // namespace rlhf::coordinator
