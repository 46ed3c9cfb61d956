// How artifacts are fetched and sent: patience shared by both directions. Internal to this library.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace rlhf::client {

inline constexpr absl::Duration kTransferCallTimeout = absl::Seconds(30);
// A stream lives as long as bytes come: its deadline covers the largest file on a slow line.
inline constexpr absl::Duration kStreamTimeout = absl::Hours(6);
inline constexpr int kAttemptsWithoutProgress = 5;
inline constexpr absl::Duration kRetryPause = absl::Milliseconds(500);

inline bool MayRetry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace rlhf::client
