// A fault that is this process's, not the job's: as it was started (its precision, its device) it cannot serve the job,
// and another may. Told from other FailedPreconditions, of a volume or another process, by a mark that stays on the
// status, also over gRPC (see status_util.h).
#pragma once

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace rlhf {

inline constexpr absl::string_view kUnsuitedMark = "rlhf/unsuited";

// FailedPrecondition; the text names how to start the process instead.
inline absl::Status UnsuitedError(absl::string_view text) {
  absl::Status status = absl::FailedPreconditionError(text);
  status.SetPayload(kUnsuitedMark, absl::Cord());
  return status;
}
inline bool IsUnsuited(const absl::Status& status) {
  return status.GetPayload(kUnsuitedMark).has_value();
}

}  // namespace rlhf
