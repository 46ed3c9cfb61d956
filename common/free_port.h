// A port for a listener that is started later, and whose clients must know it before.
#pragma once

#include "absl/status/statusor.h"

namespace rlhf {

// A port of 127.0.0.1 that nobody listens on now: `port`, or for 0 any. Another process may take it before the caller
// does: its listener then fails. Unavailable when there is none. Thread-safe.
absl::StatusOr<int> FreeLoopbackPort(int port = 0);

}  // namespace rlhf
