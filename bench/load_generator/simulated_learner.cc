#include "bench/load_generator/simulated_learner.h"

#include <filesystem>
#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "artifact/sample_digest.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/process.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

constexpr int kJoinWaitMs = 1000;
constexpr absl::Duration kLearnerCall = absl::Seconds(30);
constexpr absl::Duration kPause = absl::Milliseconds(200);
constexpr uint32_t kCheckpointOnRequest = 2;  // since this protocol version

}  // namespace

SimulatedLearner::SimulatedLearner(const LoadOptions& options, std::string instance,
                                   std::shared_ptr<grpc::Channel> channel, std::string artifact_root,
                                   Recorder* recorder)
    : options_(options),
      instance_(std::move(instance)),
      artifact_root_(std::move(artifact_root)),
      recorder_(recorder),
      protocol_version_(options.protocol_version == 0 ? kProtocolVersion : options.protocol_version),
      artifacts_(artifact_root_, artifact_root_, channel),
      stub_(v1::LearnerService::NewStub(channel)) {
  absl::StatusOr<client::StepLog> log = client::StepLog::Open(options.evidence_dir, instance_);
  if (log.ok()) {
    step_log_ = *std::move(log);
  } else {
    recorder_->Fail("evidence", log.status().ToString());
  }
  v1::RegisterRequest identity;
  identity.set_role(v1::ROLE_LEARNER);
  identity.set_instance_id(instance_);
  identity.set_protocol_version(protocol_version_);
  identity.set_build_version(kBuildVersion);
  identity.set_address("127.0.0.1:9");  // nobody pulls weights from it
  client::FleetSession::Callbacks callbacks;
  callbacks.fill_heartbeat = [](v1::HeartbeatRequest*) {};
  callbacks.on_heartbeat = [](const v1::HeartbeatResponse&) {};
  callbacks.on_session = [](const std::string&) {};
  session_ = client::FleetSession::Start(channel, identity, callbacks);
  thread_ = std::thread([this] { Run(); });
}

void SimulatedLearner::Stop() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    if (reading_ != nullptr) reading_->TryCancel();
  }
  thread_.join();
  session_->Stop();
}

template <typename Request>
Request SimulatedLearner::Fenced(const v1::GroupAssignment& group) const {
  Request request;
  request.set_job_id(group.job_id());
  request.set_epoch(group.epoch());
  request.set_session_id(session_->session_id());
  return request;
}

void SimulatedLearner::Run() {
  while (!stopped_) {
    if (!session_->WaitRegistered(kPause)) continue;
    v1::JoinGroupRequest request;
    request.set_session_id(session_->session_id());
    request.set_wait_ms(kJoinWaitMs);
    request.set_held_job_id(held_job_);
    *request.mutable_held() = held_;
    v1::JoinGroupResponse response;
    const auto context = client::MakeContext(kLearnerCall);
    const absl::Status joined = FromGrpc(stub_->JoinGroup(context.get(), request, &response));
    if (!joined.ok()) {
      if (ReasonOf(joined) == v1::UNKNOWN_SESSION) session_->Invalidate();
      absl::SleepFor(kPause);
      continue;
    }
    if (!response.has_assignment()) continue;
    const absl::Status status = Train(response.assignment());
    if (!status.ok() && !stopped_) {
      if (ReasonOf(status) == v1::UNKNOWN_SESSION) session_->Invalidate();
      recorder_->Fail("Train", std::string(status.message()));
      absl::SleepFor(kPause);
    }
  }
}

absl::Status SimulatedLearner::Train(const v1::GroupAssignment& group) {
  if (group.rank() == 0) {
    auto rendezvous = Fenced<v1::PublishRendezvousRequest>(group);
    rendezvous.set_address("127.0.0.1:9");
    v1::PublishRendezvousResponse response;
    const auto context = client::MakeContext(kLearnerCall);
    RLHF_RETURN_IF_ERROR(FromGrpc(stub_->PublishRendezvous(context.get(), rendezvous, &response)));
  }
  for (int64_t step = group.next_step(); step <= group.spec().ppo().steps() && !stopped_; ++step) {
    std::vector<std::string> samples;
    RLHF_RETURN_IF_ERROR(ReadBatch(group, step, &samples));
    if (stopped_) return absl::OkStatus();
    RLHF_RETURN_IF_ERROR(Commit(group, step, std::move(samples)));
    committed_ = step;
    if (step % options_.checkpoint_every == 0 || checkpoint_asked_) RLHF_RETURN_IF_ERROR(Checkpoint(group, step));
  }
  if (stopped_) return absl::OkStatus();
  auto finish = Fenced<v1::FinishTrainingRequest>(group);
  v1::FinishTrainingResponse response;
  const auto context = client::MakeContext(kLearnerCall);
  return FromGrpc(stub_->FinishTraining(context.get(), finish, &response));
}

absl::Status SimulatedLearner::ReadBatch(const v1::GroupAssignment& group, int64_t step,
                                         std::vector<std::string>* samples) {
  auto request = Fenced<v1::NextBatchRequest>(group);
  request.set_step(step);
  const auto context = client::MakeContext(absl::Hours(1));
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return absl::OkStatus();
    reading_ = context.get();
  }
  const absl::Cleanup done = [this] {
    absl::MutexLock lock(&mu_);
    reading_ = nullptr;
  };
  const auto reader = stub_->NextBatch(context.get(), request);
  v1::BatchChunk chunk;
  int64_t read = 0, total = -1;
  absl::Time first = absl::InfiniteFuture();
  while (reader->Read(&chunk)) {
    first = std::min(first, absl::Now());
    read += chunk.samples_size();
    total = chunk.total_samples();
    for (const v1::Sample& sample : chunk.samples()) {
      if (sample.id().step() != step || !sample.has_score())
        return absl::DataLossError(absl::StrCat("step ", step, ": a sample of step ", sample.id().step(),
                                                sample.has_score() ? "" : ", without a score"));
      samples->push_back(artifact::BatchLine(sample));
    }
  }
  RLHF_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  if (read != total) return absl::DataLossError(absl::StrCat("step ", step, ": ", read, " of ", total, " samples"));
  recorder_->Add("NextBatch (stream)", absl::Now() - first, read);
  return absl::OkStatus();
}

absl::Status SimulatedLearner::Commit(const v1::GroupAssignment& group, int64_t step,
                                      std::vector<std::string> samples) {
  const std::map<std::string, double> metrics = {{"kl", 0.01 * static_cast<double>(step % 100)}};
  client::StepEvidence evidence;
  evidence.step = step;
  evidence.weights_digest = absl::StrFormat("%032x", step);
  evidence.metrics_digest = client::MetricsDigest(metrics);
  evidence.batch_digest = artifact::BatchDigest(samples);
  evidence.samples = std::move(samples);
  step_log_.Trained(group, evidence);
  auto request = Fenced<v1::CommitStepRequest>(group);
  request.set_step(step);
  request.set_weights_digest(evidence.weights_digest);
  request.set_metrics_digest(evidence.metrics_digest);
  request.set_batch_digest(evidence.batch_digest);
  request.set_world_size(group.world_size());
  request.set_weights_address("127.0.0.1:9");
  request.mutable_metrics()->mutable_values()->insert(metrics.begin(), metrics.end());
  v1::CommitStepResponse response;
  const auto context = client::MakeContext(kLearnerCall);
  const absl::Time started = absl::Now();
  RLHF_RETURN_IF_ERROR(FromGrpc(stub_->CommitStep(context.get(), request, &response)));
  recorder_->Add("CommitStep", absl::Now() - started, 1);
  step_log_.Committed(group, response.version());
  held_job_ = group.job_id();
  held_ = response.version();
  checkpoint_asked_ = response.checkpoint() && protocol_version_ >= kCheckpointOnRequest;
  return absl::OkStatus();
}

absl::Status SimulatedLearner::Checkpoint(const v1::GroupAssignment& group, int64_t step) {
  const std::string folder = absl::StrCat(artifact_root_, "/../checkpoint-", instance_);
  RLHF_RETURN_IF_ERROR(MakeDirs(folder));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(folder + "/state", absl::StrCat(group.job_id(), " ", step)));
  auto request = Fenced<v1::ReportCheckpointRequest>(group);
  request.set_step(step);
  RLHF_ASSIGN_OR_RETURN(const std::string digest,
                        artifacts_.Publish(folder, "checkpoint", group.spec().project(), group.job_id()));
  request.set_digest(digest);
  v1::ReportCheckpointResponse response;
  const auto context = client::MakeContext(kLearnerCall);
  return FromGrpc(stub_->ReportCheckpoint(context.get(), request, &response));
}

}  // namespace rlhf::bench
