#include "learner/replay/replay.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "artifact/artifact_root.h"
#include "artifact/sample_digest.h"
#include "client/cpp/evidence_log.h"
#include "common/durable_file.h"
#include "common/learner_inputs.h"
#include "common/status_util.h"
#include "model/weights_io.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::learner {
namespace {

template <typename Message>
absl::Status ReadMessage(const std::string& path, Message* message) {
  RLHF_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  if (message->ParseFromString(bytes)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, ": expected a ", message->GetTypeName()));
}

absl::Status Compare(int64_t step, const char* what, const std::string& recorded, const std::string& found) {
  if (recorded.empty() || recorded == found) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("step ", step, ": expected ", what, " ", recorded, " as recorded, found ", found));
}

}  // namespace

absl::StatusOr<Recording> ReadRecording(const std::string& dir) {
  Recording recording;
  recording.dir = dir;
  RLHF_RETURN_IF_ERROR(ReadMessage(dir + "/job.pb", &recording.job));
  v1::GetLedgerResponse ledger;
  RLHF_RETURN_IF_ERROR(ReadMessage(dir + "/committed.pb", &ledger));
  for (const v1::CommittedStep& step : ledger.steps()) {
    if (step.step() > recording.job.step()) continue;
    const int world = std::max(1, step.world_size());
    if (!recording.steps.empty() && world != recording.world_size) {
      return absl::FailedPreconditionError(absl::StrCat(
          "step ", step.step(), " was trained by ", world, " ranks, those before by ", recording.world_size,
          ": sums differ in their last bits, there is nothing to compare bytes with"));
    }
    recording.world_size = world;
    recording.steps[step.step()] = step;
  }
  if (recording.steps.empty()) return absl::FailedPreconditionError(dir + ": the job has no committed step");
  return recording;
}

absl::StatusOr<int64_t> ReplayRank(const Recording& recording, Collective* collective) {
  const artifact::ArtifactRoot artifacts(recording.dir + "/artifacts");
  TrainerInputs inputs;
  inputs.spec = recording.job.spec();
  for (const std::string& reference : LearnerReferences(inputs.spec)) {
    const auto digest = recording.job.resolved().find(reference);
    if (digest == recording.job.resolved().end())
      return absl::DataLossError(absl::StrCat("the record does not say what \"", reference, "\" is"));
    RLHF_ASSIGN_OR_RETURN(inputs.local[reference], artifacts.Path(digest->second));
  }
  RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer, Trainer::Create(inputs));
  trainer->SetCollective(collective);
  if (recording.job.has_start()) {
    RLHF_ASSIGN_OR_RETURN(const std::string checkpoint, artifacts.Path(recording.job.start().checkpoint()));
    RLHF_RETURN_IF_ERROR(trainer->LoadCheckpoint(checkpoint));
  }
  for (const auto& [step, committed] : recording.steps) {
    v1::BatchChunk batch;
    RLHF_RETURN_IF_ERROR(ReadMessage(absl::StrCat(recording.dir, "/batches/", step, ".pb"), &batch));
    const std::vector<v1::Sample> samples(batch.samples().begin(), batch.samples().end());
    std::vector<std::string> lines;
    for (const v1::Sample& sample : samples) lines.push_back(artifact::BatchLine(sample));
    RLHF_RETURN_IF_ERROR(Compare(step, "batch", committed.batch_digest(), artifact::BatchDigest(lines)));
    RLHF_ASSIGN_OR_RETURN(const StepResult result, trainer->RunStep(step, samples));
    if (!result.trained)
      return absl::DataLossError(absl::StrCat("step ", step, " was committed, now it is refused: ", result.refusal));
    RLHF_RETURN_IF_ERROR(Compare(step, "weights", committed.weights_digest(), model::WeightsDigest(trainer->model())));
    RLHF_RETURN_IF_ERROR(Compare(step, "metrics", committed.metrics_digest(), client::MetricsDigest(result.metrics)));
    if (committed.state_digest().empty()) continue;
    RLHF_ASSIGN_OR_RETURN(const std::string state, trainer->Digest());
    RLHF_RETURN_IF_ERROR(Compare(step, "weights and optimizer state", committed.state_digest(), state));
  }
  trainer->SetCollective(nullptr);
  return static_cast<int64_t>(recording.steps.size());
}

}  // namespace rlhf::learner
