#include "coordinator/loop_clock.h"

#include <algorithm>
#include <utility>

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

CallersTime::CallersTime(const Clock* loop, const Clock* callers)
    : loop_(loop), callers_(callers == nullptr ? loop : callers), left_out_(callers_->Now() - loop_->Now()) {}

bool CallersTime::Settling() {
  const absl::Duration left_out = callers_->Now() - loop_->Now();
  if (left_out - std::exchange(left_out_, left_out) > kStoodStill) settled_from_ = Now() + kSettle;
  return Now() < settled_from_;
}

}  // namespace rlhf::coordinator
