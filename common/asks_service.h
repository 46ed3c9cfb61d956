// Whether scores come from a service of a user's own (components of kind `external`): whoever waits for it must hold up
// nobody else.
#pragma once

#include <algorithm>

#include "rlhf/v1/job.pb.h"

namespace rlhf {

// How many jobs' own services a reward server asks at once, beside what it computes. Of one job one request at a time:
// a service that hangs holds up its own job alone.
inline constexpr int kMostServicesAsked = 8;

inline bool AsksService(const v1::ScorerSpec& scorer) {
  return std::any_of(scorer.components().begin(), scorer.components().end(),
                     [](const v1::RewardComponent& component) { return component.has_external(); });
}

}  // namespace rlhf
