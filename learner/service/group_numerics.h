// Whether this process may train a group's job at all, and computes as the others of the group do. Of the training
// thread.
#pragma once

#include "absl/status/status.h"
#include "learner/service/rank_meeting.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::learner {

// Unsuited (common/unsuited.h), for others may train the job: it has what only a newer release knows, or, of a
// deterministic one, its steps were trained with other numerics than this process has.
absl::Status CheckSuits(const v1::GroupAssignment& group);

// Of a deterministic job without a step: Unsuited where this rank's numerics are not rank 0's (IsUnlikeRankZero). Every
// rank calls it.
absl::Status AgreeOnNumerics(const v1::GroupAssignment& group, RankMeeting* meeting);
bool IsUnlikeRankZero(const absl::Status& status);

}  // namespace rlhf::learner
