// Named places where a test build can die, wait or fail. Compiled in only with -DRLHF_FAILPOINTS=ON; else nothing is
// left of them.
//
// The environment variable RLHF_FAILPOINTS arms them: "store.commit=kill,learner.step=sleep:200,store.write=error". A
// count arms only the n-th pass: "store.commit=kill@3". Actions: kill (SIGKILL to this process), sleep:MS, error (the
// failpoint returns an Unavailable status).
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rlhf {

// Performs what is armed for `name`; OK when nothing is, or after a sleep. Thread-safe.
absl::Status HitFailpoint(const char* name);
// Replaces what the environment armed. For tests of the failpoints themselves. InvalidArgument names the bad entry.
absl::Status ArmFailpoints(const std::string& specification);

}  // namespace rlhf

// As a statement. RLHF_FAILPOINT_OR_RETURN returns the error from a function that returns absl::Status or StatusOr.
#ifdef RLHF_FAILPOINTS
#define RLHF_FAILPOINT(name) static_cast<void>(::rlhf::HitFailpoint(name))
#define RLHF_FAILPOINT_OR_RETURN(name)                                                                            \
  do {                                                                                                            \
    if (absl::Status rlhf_failpoint_ = ::rlhf::HitFailpoint(name); !rlhf_failpoint_.ok()) return rlhf_failpoint_; \
  } while (false)
#else
#define RLHF_FAILPOINT(name) static_cast<void>(0)
#define RLHF_FAILPOINT_OR_RETURN(name) static_cast<void>(0)
#endif
