// When a call is to be given up. By the system's clock itself: gRPC converts a deadline by what that says at the moment
// of the call, and absl::Now(), which interpolates, is up to two seconds late after the clock was set. A deadline an
// hour in the past would fail every call until then.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace rlhf {

inline std::chrono::system_clock::time_point CallDeadline(absl::Duration timeout) {
  return std::chrono::system_clock::now() + absl::ToChronoNanoseconds(timeout);
}

}  // namespace rlhf
