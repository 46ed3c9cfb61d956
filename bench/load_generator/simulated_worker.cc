#include "bench/load_generator/simulated_worker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/sample_id.h"
#include "common/call_deadline.h"
#include "common/process.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

constexpr absl::Duration kWorkerCall = absl::Seconds(30);
constexpr absl::Duration kRetry = absl::Milliseconds(500);
constexpr int kLeaseWaitMs = 2000;
constexpr double kGenerating = 0.5;  // share of a worker's period

}  // namespace

SimulatedWorker::SimulatedWorker(const LoadOptions& options, std::string instance,
                                 std::shared_ptr<grpc::Channel> channel, coordinator::EventLoop* loop,
                                 Recorder* recorder)
    : options_(options),
      instance_(std::move(instance)),
      stub_(v1::FleetService::NewStub(channel)),
      loop_(loop),
      recorder_(recorder) {
  for (int i = 0; i < options.prompt_tokens; ++i) sample_.add_prompt_tokens(1000 + i * 7919 % 100'000);
  for (int i = 0; i < options.response_tokens; ++i) {
    sample_.add_response_tokens(1000 + i * 104'729 % 100'000);
    sample_.add_behaviour_log_probs(-0.001f * static_cast<float>(1 + i % 997));
    sample_.mutable_response_text()->append("word ", static_cast<size_t>(3 + i % 3));
  }
  sample_.set_finish_reason(v1::MAX_TOKENS);
  absl::StatusOr<client::AcceptedLog> log = client::AcceptedLog::Open(options.evidence_dir, instance_);
  if (log.ok()) {
    accepted_log_ = *std::move(log);
  } else {
    recorder_->Fail("evidence", log.status().ToString());
  }
}

template <typename Request, typename Response>
void SimulatedWorker::Call(const std::string& what,
                           void (v1::FleetService::Stub::async::*method)(grpc::ClientContext*, const Request*,
                                                                         Response*, std::function<void(grpc::Status)>),
                           std::shared_ptr<Request> request, std::function<int64_t(const Response&)> items,
                           std::function<void(const absl::Status&, const Response&)> then) {
  auto context = std::make_shared<grpc::ClientContext>();
  auto response = std::make_shared<Response>();
  context->set_deadline(CallDeadline(kWorkerCall));
  const absl::Duration started = loop_->clock().Now();
  {
    absl::MutexLock lock(&mu_);
    in_flight_.insert(context.get());
  }
  (stub_->async()->*method)(context.get(), request.get(), response.get(),
                            [this, what, context, request, response, started, items = std::move(items),
                             then = std::move(then)](grpc::Status status) {
                              if (status.ok()) {
                                const int64_t count = items(*response);
                                if (count > 0) recorder_->Add(what, loop_->clock().Now() - started, count);
                              }
                              loop_->Post([this, what, response, status, then] {
                                if (stopped_) return;
                                if (!status.ok()) recorder_->Fail(what, status.error_message());
                                then(FromGrpc(status), *response);
                              });
                              absl::MutexLock lock(&mu_);
                              in_flight_.erase(context.get());
                            });
}

void SimulatedWorker::Stop() {
  stopped_ = true;
  absl::MutexLock lock(&mu_);
  for (grpc::ClientContext* context : in_flight_) context->TryCancel();
}

void SimulatedWorker::Drain() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(
      +[](std::set<grpc::ClientContext*>* calls) { return calls->empty(); }, &in_flight_));
}

void SimulatedWorker::Start(absl::Duration delay, absl::Duration period) {
  delay_ = delay;
  period_ = period;
  loop_->Post([this] { Register(); });
}

void SimulatedWorker::Register() {
  auto request = std::make_shared<v1::RegisterRequest>();
  request->set_role(v1::ROLE_ROLLOUT_WORKER);
  request->set_instance_id(instance_);
  request->set_protocol_version(options_.protocol_version == 0 ? kProtocolVersion : options_.protocol_version);
  request->set_build_version(kBuildVersion);
  request->set_slots(options_.samples_per_lease);
  request->set_device("none");
  Call<v1::RegisterRequest, v1::RegisterResponse>(
      "Register", &v1::FleetService::Stub::async::Register, request, [](const auto&) { return 1; },
      [this](const absl::Status& status, const v1::RegisterResponse& response) {
        if (!status.ok()) return loop_->PostAfter(kRetry, [this] { Register(); });
        session_ = response.session_id();
        held_.clear();
        heartbeat_ = absl::Milliseconds(response.heartbeat_interval_ms());
        loop_->PostAfter(heartbeat_, [this] { Heartbeat(); });
        next_lease_ = loop_->clock().Now() + delay_;
        loop_->PostAfter(delay_, [this] { Lease(); });
      });
}

bool SimulatedWorker::SessionLost(const absl::Status& status) {
  if (ReasonOf(status) != v1::UNKNOWN_SESSION) return false;
  if (!session_.empty()) {
    session_.clear();
    Register();
  }
  return true;
}

void SimulatedWorker::Heartbeat() {
  if (stopped_ || session_.empty()) return;
  auto request = std::make_shared<v1::HeartbeatRequest>();
  request->set_session_id(session_);
  ++tokens_done_;
  for (auto& [key, progress] : held_) {
    progress.set_tokens_done(tokens_done_);
    *request->add_progress() = progress;
  }
  Call<v1::HeartbeatRequest, v1::HeartbeatResponse>(
      "Heartbeat", &v1::FleetService::Stub::async::Heartbeat, request, [](const auto&) { return 1; },
      [this](const absl::Status& status, const v1::HeartbeatResponse&) {
        if (!SessionLost(status)) loop_->PostAfter(heartbeat_, [this] { Heartbeat(); });
      });
}

void SimulatedWorker::Next() {
  // On the schedule; late ones at once, so that a slow answer does not lower what is asked for in the long run.
  next_lease_ += period_;
  const absl::Duration now = loop_->clock().Now();
  if (next_lease_ < now - absl::Seconds(1)) next_lease_ = now;
  loop_->PostAfter(std::max(absl::ZeroDuration(), next_lease_ - now), [this] { Lease(); });
}

void SimulatedWorker::Lease() {
  if (stopped_ || session_.empty()) return;
  auto request = std::make_shared<v1::LeasePromptsRequest>();
  request->set_session_id(session_);
  request->set_max_samples(options_.samples_per_lease);
  request->set_wait_ms(kLeaseWaitMs);
  Call<v1::LeasePromptsRequest, v1::LeasePromptsResponse>(
      "LeasePrompts", &v1::FleetService::Stub::async::LeasePrompts, request,
      [](const v1::LeasePromptsResponse& response) {
        int64_t samples = 0;
        for (const v1::PromptLease& lease : response.leases()) samples += lease.samples_size();
        return samples;
      },
      [this](const absl::Status& status, const v1::LeasePromptsResponse& response) {
        if (SessionLost(status)) return;
        if (!status.ok() || response.leases().empty()) return Next();
        Generate(response);
      });
}

void SimulatedWorker::Generate(const v1::LeasePromptsResponse& response) {
  auto request = std::make_shared<v1::SubmitSamplesRequest>();
  request->set_session_id(session_);
  for (const v1::PromptLease& lease : response.leases()) {
    for (const v1::SampleLease& leased : lease.samples()) {
      v1::Sample& sample = *request->add_samples();
      sample = sample_;
      *sample.mutable_id() = artifact::SampleIdOf(lease, leased.index());
      sample.set_attempt(leased.attempt());
      *sample.mutable_prompt() = lease.prompt();
      *sample.mutable_version_low() = lease.policy().version();
      *sample.mutable_version_high() = lease.policy().version();
      v1::LeaseProgress& progress = held_[sample.id().SerializeAsString()];
      *progress.mutable_id() = sample.id();
      progress.set_attempt(leased.attempt());
    }
  }
  loop_->PostAfter(period_ * kGenerating, [this, request] { Submit(request); });
}

void SimulatedWorker::Submit(std::shared_ptr<v1::SubmitSamplesRequest> request) {
  if (stopped_) return;
  Call<v1::SubmitSamplesRequest, v1::SubmitSamplesResponse>(
      "SubmitSamples", &v1::FleetService::Stub::async::SubmitSamples, request,
      [](const v1::SubmitSamplesResponse& response) { return response.verdicts_size(); },
      [this, request](const absl::Status& status, const v1::SubmitSamplesResponse& response) {
        if (SessionLost(status)) return;
        accepted_log_.Accepted(*request, response);
        for (const v1::SampleVerdict& verdict : response.verdicts()) {
          held_.erase(verdict.id().SerializeAsString());
          if (!verdict.accepted()) recorder_->Fail("verdict", v1::ErrorReason_Name(verdict.reason()));
        }
        Next();
      });
}

}  // namespace rlhf::bench
