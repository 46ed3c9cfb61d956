#include "coordinator/jobs/committed_steps.h"

#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

std::string CommittedStepKey(const std::string& job_id, int64_t step) {
  return KeyOf(CommittedStepPrefix(job_id), {static_cast<uint64_t>(step)});
}

}  // namespace

std::string CommittedWeights(StateStore* store, const std::string& job_id, int64_t step) {
  v1::CommittedStep stored;
  const absl::StatusOr<std::string> row = store->Get(Table::kMeta, CommittedStepKey(job_id, step));
  return row.ok() && stored.ParseFromString(*row) ? stored.weights_digest() : "";
}

absl::Status CommittedSteps::Restore(StateStore* store) {
  return store->Scan(Table::kMeta, CommittedStepPrefix(job_id_), [&](absl::string_view, absl::string_view value) {
    v1::CommittedStep step;
    step.ParseFromArray(value.data(), static_cast<int>(value.size()));
    steps_[step.step()] = std::move(step);
    return true;
  });
}

std::string CommittedSteps::WeightsDigest(int64_t step) const {
  const auto found = steps_.find(step);
  return found == steps_.end() ? "" : found->second.weights_digest();
}

bool CommittedSteps::EndedOtherwise(int64_t step, const std::string& weights_digest) const {
  const auto found = steps_.find(step);
  return found != steps_.end() && found->second.weights_digest() != weights_digest;
}

void CommittedSteps::Record(const v1::CommitStepRequest& request, uint64_t lineage, WriteBatch* batch) {
  v1::CommittedStep& stored = steps_[request.step()];
  stored.set_step(request.step());
  stored.set_lineage(lineage);
  stored.set_weights_digest(request.weights_digest());
  stored.set_state_digest(request.state_digest());
  stored.set_metrics_digest(request.metrics_digest());
  stored.set_batch_digest(request.batch_digest());
  stored.set_world_size(request.world_size());
  stored.set_epoch(request.epoch());
  stored.set_commits(stored.commits() + 1);
  batch->Put(Table::kMeta, CommittedStepKey(job_id_, request.step()), stored.SerializeAsString());
}

void CommittedSteps::ForgetAfter(int64_t step, WriteBatch* batch) {
  for (auto later = steps_.upper_bound(step); later != steps_.end(); later = steps_.erase(later))
    batch->Erase(Table::kMeta, CommittedStepKey(job_id_, later->first));
}

}  // namespace rlhf::coordinator
