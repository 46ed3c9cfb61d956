#include "common/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace rlhf {
namespace {

class RealClock final : public Clock {
 public:
  absl::Duration Now() const override { return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()); }
  absl::Time WallNow() const override { return absl::Now(); }
};

}  // namespace

Clock* Clock::Real() {
  static RealClock* const clock = new RealClock;
  return clock;
}

}  // namespace rlhf
