// Trains recorded batches again and compares what comes out with what was committed.
//
// This is how "the same bytes" is checked: a job that was killed and resumed any number of times must end, step by
// step, as an undisturbed learner that is fed its batches.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "learner/collective.h"
#include "learner/trainer.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::learner {

// A folder that `rlhfctl replay` wrote (see there).
struct Recording {
  std::string dir;
  v1::Job job;
  std::map<int64_t, v1::CommittedStep> steps;
  int world_size = 1;
};
// FailedPrecondition when steps were trained by different numbers of ranks: such a job has no bytes to compare with.
absl::StatusOr<Recording> ReadRecording(const std::string& dir);

// One rank's part; every rank of the group calls it. Returns the first difference as DataLoss; else how many steps were
// compared.
absl::StatusOr<int64_t> ReplayRank(const Recording& recording, Collective* collective);

}  // namespace rlhf::learner
