#include "learner/service/coordinator_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::learner {
namespace {

constexpr int kJoinWaitMs = 5000;
constexpr absl::Duration kCall = absl::Seconds(15);
constexpr absl::Duration kBatch =
    absl::Hours(24);  // generation takes as long as it takes; the fence or Cancel ends the wait

bool WorthAnotherTry(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// What is told of a call that has to be tried again. A reason is the coordinator's own: it answers, and does not do it.
std::string WhyAgain(const absl::Status& status) {
  switch (ReasonOf(status)) {
    case v1::ERROR_REASON_UNSPECIFIED:
      return absl::StrCat("the coordinator does not answer (", status.message(), "); trying again");
    case v1::SERVICE_HALTED:
      return absl::StrCat(status.message(), "; waiting for that");
    default:
      return absl::StrCat("the coordinator cannot do what it is asked now (", status.message(), "); trying again");
  }
}

}  // namespace

CoordinatorClient::CoordinatorClient(std::shared_ptr<grpc::Channel> channel, client::FleetSession* session)
    : stub_(v1::LearnerService::NewStub(channel)), session_(session) {}

void CoordinatorClient::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  if (active_ != nullptr) active_->TryCancel();
}

void CoordinatorClient::Reset() {
  absl::MutexLock lock(&mu_);
  checkpoint_asked_ = false;  // of the group before
  cancelled_ = false;
}

void CoordinatorClient::WaitCancelled() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&cancelled_));
}

bool CoordinatorClient::SleepUnlessCancelled(absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  return !mu_.AwaitWithTimeout(absl::Condition(&cancelled_), duration);
}

absl::Status CoordinatorClient::Retry(const std::function<absl::Status(grpc::ClientContext*)>& call,
                                      absl::Duration timeout) {
  absl::Duration pause = absl::Milliseconds(100);
  std::string told;
  while (true) {
    const std::unique_ptr<grpc::ClientContext> context = client::MakeContext(timeout);
    const std::string session = session_->session_id();
    {
      absl::MutexLock lock(&mu_);
      if (cancelled_) return absl::CancelledError("the group changed, or this process is stopping");
      active_ = context.get();
    }
    absl::Status status = call(context.get());
    {
      absl::MutexLock lock(&mu_);
      active_ = nullptr;
      if (cancelled_) return absl::CancelledError("the group changed, or this process is stopping");
    }
    if (ReasonOf(status) == v1::UNKNOWN_SESSION) session_->Invalidate(session);
    if (!WorthAnotherTry(status)) return status;
    // Once: a halt lasts for hours.
    if (std::string why = WhyAgain(status); why != told) spdlog::warn("{}", told = std::move(why));
    absl::SleepFor(pause);
    pause = std::min(2 * pause, absl::Seconds(2));
  }
}

template <typename Request>
Request CoordinatorClient::Fenced(const v1::GroupAssignment& group) const {
  Request request;
  request.set_job_id(group.job_id());
  request.set_epoch(group.epoch());
  request.set_session_id(session_->session_id());
  return request;
}

absl::StatusOr<v1::JoinGroupResponse> CoordinatorClient::Join(const std::string& held_job,
                                                              const v1::PolicyVersion& held, const Share& held_share,
                                                              const std::string& left_because) {
  v1::JoinGroupResponse response;
  RLHF_RETURN_IF_ERROR(Retry(
      [&](grpc::ClientContext* context) {
        v1::JoinGroupRequest request;
        request.set_session_id(session_->session_id());
        request.set_wait_ms(kJoinWaitMs);
        request.set_held_job_id(held_job);
        *request.mutable_held() = held;
        request.set_held_share(held_share.index);
        request.set_held_shares(held_share.count);
        request.set_left_because(left_because);
        return FromGrpc(stub_->JoinGroup(context, request, &response));
      },
      absl::Milliseconds(kJoinWaitMs) + kCall));
  return response;
}

absl::Status CoordinatorClient::PublishRendezvous(const v1::GroupAssignment& group, const std::string& address) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::PublishRendezvousRequest>(group);
        request.set_address(address);
        v1::PublishRendezvousResponse response;
        return FromGrpc(stub_->PublishRendezvous(context, request, &response));
      },
      kCall);
}

absl::StatusOr<std::vector<v1::Sample>> CoordinatorClient::NextBatch(const v1::GroupAssignment& group, int64_t step) {
  std::vector<v1::Sample> samples;
  RLHF_RETURN_IF_ERROR(Retry(
      [&](grpc::ClientContext* context) -> absl::Status {
        samples.clear();
        auto request = Fenced<v1::NextBatchRequest>(group);
        request.set_step(step);
        const auto reader = stub_->NextBatch(context, request);
        v1::BatchChunk chunk;
        bool complete = false;
        int64_t total = 0;
        while (reader->Read(&chunk)) {
          total = chunk.total_samples();
          complete = chunk.last();
          for (auto& sample : *chunk.mutable_samples()) samples.push_back(std::move(sample));
        }
        RLHF_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
        // A partial batch never trains.
        if (!complete || static_cast<int64_t>(samples.size()) != total) {
          return absl::UnavailableError(
              absl::StrCat("the batch of step ", step, " broke off after ", samples.size(), " of ", total, " samples"));
        }
        return absl::OkStatus();
      },
      kBatch));
  return samples;
}

absl::StatusOr<v1::CommitStepResponse> CoordinatorClient::Commit(const v1::GroupAssignment& group,
                                                                 v1::CommitStepRequest request) {
  request.set_job_id(group.job_id());
  request.set_epoch(group.epoch());
  v1::CommitStepResponse response;
  const absl::Status status = Retry(
      [&](grpc::ClientContext* context) {
        request.set_session_id(session_->session_id());
        return FromGrpc(stub_->CommitStep(context, request, &response));
      },
      kCall);
  if (status.ok()) {
    NoteCheckpointRequest(response.checkpoint());
    return response;
  }
  // The coordinator may have committed and then lost us (its restart voids the session): what is durable decides.
  RLHF_ASSIGN_OR_RETURN(const v1::PolicyVersion committed, Committed(group.job_id()));
  if (committed.step() != request.step() || committed.digest() != request.weights_digest()) return status;
  response.Clear();
  *response.mutable_version() = committed;
  return response;
}

absl::StatusOr<v1::PolicyVersion> CoordinatorClient::Committed(const std::string& job_id) {
  v1::GetCommittedRequest get;
  get.set_job_id(job_id);
  // Cancel does not end this question: without its answer good weights would be thrown away.
  absl::Status status;
  for (const absl::Duration deadline = Clock::Real()->Now() + kCall; Clock::Real()->Now() < deadline;
       absl::SleepFor(absl::Seconds(1))) {
    v1::GetCommittedResponse committed;
    status = FromGrpc(stub_->GetCommitted(client::MakeContext(kCall / 3).get(), get, &committed));
    if (status.ok()) return committed.version();
    if (!WorthAnotherTry(status)) break;
  }
  return status;
}

void CoordinatorClient::NoteCheckpointRequest(bool asked) {
  absl::MutexLock lock(&mu_);
  checkpoint_asked_ = checkpoint_asked_ || asked;
}

bool CoordinatorClient::TakeCheckpointRequest() {
  absl::MutexLock lock(&mu_);
  return std::exchange(checkpoint_asked_, false);
}

absl::Status CoordinatorClient::Refuse(const v1::GroupAssignment& group, int64_t step, const std::string& reason) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::RefuseStepRequest>(group);
        request.set_step(step);
        request.set_reason(reason);
        v1::RefuseStepResponse response;
        return FromGrpc(stub_->RefuseStep(context, request, &response));
      },
      kCall);
}

absl::Status CoordinatorClient::Report(const v1::GroupAssignment& group, std::vector<v1::MetricPoint> points,
                                       int64_t step, int64_t total) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::ReportProgressRequest>(group);
        request.mutable_points()->Assign(points.begin(), points.end());
        request.set_step(step);
        request.set_total_steps(total);
        v1::ReportProgressResponse response;
        const absl::Status status = FromGrpc(stub_->ReportProgress(context, request, &response));
        NoteCheckpointRequest(status.ok() && response.checkpoint());
        return status;
      },
      kCall);
}

absl::Status CoordinatorClient::Checkpoint(const v1::GroupAssignment& group, int64_t step, const std::string& digest) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::ReportCheckpointRequest>(group);
        request.set_step(step);
        request.set_digest(digest);
        v1::ReportCheckpointResponse response;
        return FromGrpc(stub_->ReportCheckpoint(context, request, &response));
      },
      kCall);
}

absl::Status CoordinatorClient::Finish(const v1::GroupAssignment& group,
                                       const std::map<std::string, std::string>& artifacts,
                                       const std::map<std::string, v1::Metric>& metrics) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::FinishTrainingRequest>(group);
        request.mutable_artifacts()->insert(artifacts.begin(), artifacts.end());
        request.mutable_metrics()->insert(metrics.begin(), metrics.end());
        v1::FinishTrainingResponse response;
        return FromGrpc(stub_->FinishTraining(context, request, &response));
      },
      kCall);
}

absl::Status CoordinatorClient::Fail(const v1::GroupAssignment& group, const std::string& reason,
                                     const std::string& code) {
  return Retry(
      [&](grpc::ClientContext* context) {
        auto request = Fenced<v1::FailTrainingRequest>(group);
        request.set_reason(reason);
        request.set_reason_code(code);
        v1::FailTrainingResponse response;
        return FromGrpc(stub_->FailTraining(context, request, &response));
      },
      kCall);
}

}  // namespace rlhf::learner
