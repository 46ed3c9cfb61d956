// Named places where a program for tests can die, stop, wait or fail. Only the binaries in bin-faults/ can be armed:
// the same objects are linked with failpoint.cc there, and with failpoint_off.cc, whose functions do nothing, for bin/
// (cmake/RlhfTargets.cmake). So they stand at stages of a sample's life, never in an inner loop.
//
// The environment variable RLHF_FAILPOINTS_DIR names a folder that arms them while processes run: the file
// DIR/INSTANCE/NAME (with '.' for each '/' of NAME), or DIR/any/NAME for whichever process comes first, holds
// "ACTION[*][@PASS]". INSTANCE is the process's --instance; the coordinator's is "coordinator". Actions: kill (SIGKILL
// to this process), stop (SIGSTOP), sleep:MS, error (the failpoint returns Unavailable). PASS counts from the moment it
// is armed; default 1. A failpoint that fires renames its file to NAME.fired first: it fires in one process and once,
// also across restarts. With * it fires every time from PASS on, until its file is removed.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rlhf {

// Performs what is armed for `name`; OK when nothing is, or after a sleep. Thread-safe. Aborts on a file it cannot
// read.
absl::Status HitFailpoint(const char* name);
// Replaces what environment and command line say. For tests of the failpoints themselves.
void UseFailpointsOf(const std::string& dir, const std::string& instance);

}  // namespace rlhf

// As a statement. RLHF_FAILPOINT_OR_RETURN returns the error from a function that returns absl::Status or StatusOr.
#define RLHF_FAILPOINT(name) static_cast<void>(::rlhf::HitFailpoint(name))
#define RLHF_FAILPOINT_OR_RETURN(name)                                                                            \
  do {                                                                                                            \
    if (absl::Status rlhf_failpoint_ = ::rlhf::HitFailpoint(name); !rlhf_failpoint_.ok()) return rlhf_failpoint_; \
  } while (false)
// As an expression: false when it fires with an error.
#define RLHF_FAILPOINT_OK(name) (::rlhf::HitFailpoint(name).ok())
