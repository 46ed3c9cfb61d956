// What holds of a job by its state alone.
#pragma once

#include "rlhf/v1/state.pb.h"

namespace rlhf {

// It has ended: no state follows.
inline bool IsTerminal(v1::JobState state) {
  return state == v1::SUCCEEDED || state == v1::FAILED || state == v1::CANCELLED;
}

}  // namespace rlhf
