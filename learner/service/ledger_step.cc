// One step of a job with a ledger: its batch, the training, what the ranks can show for it, and the commit. And what
// the ranks of a job without one can show.
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "artifact/sample_digest.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/tracing.h"
#include "learner/service/rank_agreement.h"
#include "learner/service/training_run.h"
#include "learner/trainable.h"
#include "model/weights_io.h"

namespace rlhf::learner {
namespace {

// In each sample's own trace; the step's is an attribute.
void ExportTraining(const std::vector<v1::Sample>& batch, int64_t step, absl::Time began, absl::Time ended) {
  if (!TracingOn()) return;
  for (const v1::Sample& sample : batch) {
    const std::string name = artifact::SampleName(sample.id());
    SpanRecord span;
    span.context = TraceOf(absl::StrCat(sample.id().job_id(), "/", name));
    span.name = "train";
    span.begin = began;
    span.end = ended;
    span.attributes = {{"rlhf.job", sample.id().job_id()},
                       {"rlhf.sample", name},
                       {"rlhf.step", absl::StrCat(step)},
                       {"rlhf.step_trace", CurrentTrace().trace_id}};
    ExportSpan(std::move(span));
  }
}

}  // namespace

absl::Status TrainingRun::TrainLedgerStep(const v1::GroupAssignment& group, int64_t step, bool* advanced, bool* stop) {
  Span span("train step");  // its calls to the coordinator are in its trace
  span.Set("rlhf.job", group.job_id());
  span.Set("rlhf.step", absl::StrCat(step));
  const LogScope about({.trace_id = CurrentTrace().trace_id});
  const absl::Time asked = absl::Now();
  absl::StatusOr<std::vector<v1::Sample>> next = coordinator_->NextBatch(group, step);
  if (absl::IsOutOfRange(next.status())) {
    // A monitor ended the job at an earlier step: all ranks hear it here.
    spdlog::info("training ends: {}", std::string(next.status().message()));
    *advanced = false;
    *stop = true;
    return absl::OkStatus();
  }
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::Sample> batch, std::move(next));
  const absl::Time got = absl::Now();
  std::optional<StuckWatch::Work> work(&stuck_);
  RLHF_FAILPOINT("learner/before_step");
  RLHF_ASSIGN_OR_RETURN(StepResult result, trainer_->RunStep(step, batch));
  work.reset();
  const absl::Time trained = absl::Now();
  if (group.rank() == 0) ExportTraining(batch, step, got, trained);
  *advanced = result.trained;
  if (!result.trained) {
    spdlog::warn("step {} was refused: {}", step, result.refusal);
    if (group.rank() == 0) run_metrics_.Refused();
    step_log_.Refused(group, step, result.refusal);
    return meeting_.ByRankZero("report a refused step",
                               [&] { return coordinator_->Refuse(group, step, result.refusal); });
  }
  *stop = result.stop;
  absl::StatusOr<client::StepEvidence> evidence = Witness(group, step, batch, result);
  if (!evidence.ok()) {
    trainer_->RevertStep();
    return evidence.status();
  }
  result.metrics["seconds/wait_for_samples"] = absl::ToDoubleSeconds(got - asked);
  result.metrics["seconds/train"] = absl::ToDoubleSeconds(trained - got);
  return CommitLedgerStep(group, *evidence, result, trained);
}

absl::StatusOr<client::StepEvidence> TrainingRun::Witness(const v1::GroupAssignment& group, int64_t step,
                                                          const std::vector<v1::Sample>& batch,
                                                          const StepResult& result) {
  client::StepEvidence evidence;
  evidence.step = step;
  evidence.weights_digest = model::WeightsDigest(trainer_->model());
  RLHF_FAILPOINT("learner/after_step");
  const int every = CheckpointEvery(group.spec());
  if (result.stop || step == TotalSteps(group) || (every > 0 && step % every == 0)) {
    RLHF_ASSIGN_OR_RETURN(evidence.state_digest, trainer_->Digest());
  }
  evidence.metrics_digest = client::MetricsDigest(result.metrics);
  for (const v1::Sample& sample : batch) evidence.samples.push_back(artifact::BatchLine(sample));
  evidence.batch_digest = artifact::BatchDigest(evidence.samples);
  RLHF_RETURN_IF_ERROR(Agree(group, evidence));
  return evidence;
}

absl::Status TrainingRun::Agree(const v1::GroupAssignment& group, const client::StepEvidence& evidence) {
  step_log_.Trained(group, evidence);
  const std::string digests = evidence.weights_digest + evidence.state_digest;
  RLHF_ASSIGN_OR_RETURN(const bool agree, RanksAgree(digests, options_.device, *group_collective_));
  if (agree) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the ranks' weights or optimizer states differ after step ", evidence.step,
                                          ": a rank's memory or arithmetic is damaged; find which one from their "
                                          "step logs (--evidence-dir) and replace it"));
}

absl::Status TrainingRun::WitnessLocalStep(const v1::GroupAssignment& group, int64_t step) {
  client::StepEvidence evidence;
  evidence.step = step;
  evidence.weights_digest = model::WeightsDigest(trainer_->model());
  RLHF_ASSIGN_OR_RETURN(evidence.state_digest, trainer_->Digest());
  return Agree(group, evidence);
}

absl::StatusOr<v1::CommitStepResponse> TrainingRun::Commit(const v1::GroupAssignment& group,
                                                           const client::StepEvidence& evidence,
                                                           const StepResult& result, absl::Time trained) {
  v1::CommitStepRequest request;
  request.set_step(evidence.step);
  request.set_weights_digest(evidence.weights_digest);
  request.set_weights_address(options_.weights_address);
  request.set_stop(result.stop);
  request.set_stop_reason(result.stop_reason);
  request.set_batch_digest(evidence.batch_digest);
  request.set_state_digest(evidence.state_digest);
  request.set_metrics_digest(evidence.metrics_digest);
  request.set_world_size(group.world_size());
  request.set_numerics(NumericsOf(group.spec(), group.world_size()));
  request.mutable_metrics()->set_job_id(group.job_id());
  request.mutable_metrics()->set_step(evidence.step);
  request.mutable_metrics()->mutable_values()->insert(result.metrics.begin(), result.metrics.end());
  (*request.mutable_metrics()->mutable_values())["seconds/publish"] = absl::ToDoubleSeconds(absl::Now() - trained);
  RLHF_FAILPOINT("learner/before_commit");
  auto answered = coordinator_->Commit(group, std::move(request));
  RLHF_FAILPOINT("learner/after_commit");
  return answered;
}

absl::Status TrainingRun::CommitLedgerStep(const v1::GroupAssignment& group, const client::StepEvidence& evidence,
                                           const StepResult& result, absl::Time trained) {
  v1::PolicyVersion version;
  version.set_lineage(group.lineage());
  version.set_step(evidence.step);
  version.set_digest(evidence.weights_digest);
  const bool commits = group.rank() == 0;
  absl::Status committed;
  bool regroup = false;
  if (commits) committed = publisher_->Stage(group.job_id(), version, trainer_->model());
  // Ranks go on only with what is durable, however long that takes: a halt, or a coordinator that is away. One sum
  // tells whether it is, whether to form the group anew, and rank 0's lineage.
  const absl::StatusOr<std::vector<double>> told = meeting_.Sum(3, commits && committed.ok(), [&] {
    if (commits && committed.ok()) {
      const absl::StatusOr<v1::CommitStepResponse> answered = Commit(group, evidence, result, trained);
      committed = answered.status();
      if (answered.ok()) {
        version = answered->version();
        regroup = answered->regroup();
        publisher_->Confirm(group.job_id(), version);
        run_metrics_.Committed(result.metrics);
        events_.Step(evidence.step, result.metrics);
      } else {
        publisher_->Drop(group.job_id(), evidence.step);
      }
    }
    return std::vector<double>{committed.ok() ? 0.0 : 1.0, regroup ? 1.0 : 0.0,
                               commits ? static_cast<double>(version.lineage()) : 0.0};
  });
  if (!committed.ok() || (told.ok() && (*told)[0] > 0)) {
    trainer_->RevertStep();
    return committed.ok() ? absl::AbortedError("rank 0 could not commit the step") : committed;
  }
  if (!told.ok()) {
    SettleCommit(group, version);
    return told.status();
  }
  version.set_lineage(static_cast<uint64_t>((*told)[2]));
  held_ = version;
  step_log_.Committed(group, version);
  if (group.rank() == 0) spdlog::info("step {} is committed", evidence.step);
  if ((*told)[1] > 0) {
    RLHF_RETURN_IF_ERROR(MaybeCheckpoint(group, evidence.step));  // the next group's first one is an interval away
    return absl::AbortedError("a rank waits to be taken in; joining again");
  }
  return absl::OkStatus();
}

void TrainingRun::SettleCommit(const v1::GroupAssignment& group, const v1::PolicyVersion& version) {
  if (group.rank() == 0) {
    held_ = version;
    return;
  }
  // Rank 0 died around its commit: the coordinator knows whether it was taken. Should it still be on its way, this rank
  // holds the wrong version, says so when the group forms again, and the job goes back to its checkpoint.
  const absl::StatusOr<v1::PolicyVersion> committed = coordinator_->Committed(group.job_id());
  if (!committed.ok()) {
    held_job_.clear();
  } else if (committed->step() == version.step() && committed->digest() == version.digest()) {
    held_ = *committed;
  } else {
    trainer_->RevertStep();
  }
}

}  // namespace rlhf::learner
