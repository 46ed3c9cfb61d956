// The steps of a PPO job that were committed: what a replay is compared with. Those that were rolled back are among
// them until a step before them is committed with other weights, which begins another history. A row of
// rlhf.v1.CommittedStep each. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/learner_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// The digest of the weights that a step was committed with; empty: it is not.
std::string CommittedWeights(StateStore* store, const std::string& job_id, int64_t step);

class CommittedSteps {
 public:
  explicit CommittedSteps(std::string job_id) : job_id_(std::move(job_id)) {}

  absl::Status Restore(StateStore* store);  // from the rows; the store's error
  int64_t newest() const { return steps_.empty() ? 0 : steps_.rbegin()->first; }
  std::string WeightsDigest(int64_t step) const;  // empty: never committed
  // Whether the step was committed before, with other weights.
  bool EndedOtherwise(int64_t step, const std::string& weights_digest) const;
  // The step, as it was committed now under a lineage.
  void Record(const v1::CommitStepRequest& request, uint64_t lineage, WriteBatch* batch);
  // What came after the step belongs to a history that was replaced.
  void ForgetAfter(int64_t step, WriteBatch* batch);

 private:
  const std::string job_id_;
  std::map<int64_t, v1::CommittedStep> steps_;
};

}  // namespace rlhf::coordinator
