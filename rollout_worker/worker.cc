#include "rollout_worker/worker.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/sample_digest.h"
#include "artifact/sample_id.h"
#include "client/cpp/channel.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/known_fields.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/tracing.h"
#include "common/unsuited.h"

namespace rlhf::rollout {
namespace {

constexpr int kLeaseWaitMs = 2000;
constexpr auto kMetricsEvery = absl::Milliseconds(250);
constexpr auto kIdlePoll = absl::Milliseconds(20);
constexpr size_t kSubmitBytes = 16 << 20;  // of samples in one request; a channel carries 64 MiB

bool SameLease(const v1::LeaseProgress& a, const v1::SampleId& id, int attempt) {
  return a.attempt() == attempt && a.id().job_id() == id.job_id() && a.id().step() == id.step() &&
         a.id().ordinal() == id.ordinal() && a.id().index() == id.index();
}

v1::LeaseProgress ProgressOf(const v1::Sample& sample) {
  v1::LeaseProgress progress;
  *progress.mutable_id() = sample.id();
  progress.set_attempt(sample.attempt());
  progress.set_tokens_done(sample.response_tokens_size());
  return progress;
}

v1::ReturnedLease ReturnedOf(const v1::SampleId& id, int32_t attempt, const std::string& error) {
  v1::ReturnedLease returned;
  *returned.mutable_id() = id;
  returned.set_attempt(attempt);
  returned.set_error(error);
  return returned;
}

// Whether the coordinator, or the channel, would say the same whenever it is asked: the samples are at fault, or the
// size of one. Without that, exhausted is a volume, which somebody makes room on.
bool AnsweredAlike(const absl::Status& status, const v1::SubmitSamplesRequest& request) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status) ||
         (absl::IsResourceExhausted(status) && request.ByteSizeLong() > kSubmitBytes);
}

// All that shapes the samples is known here; of where weights are, what is new may be left out.
absl::Status CheckKnownParts(const v1::LeasePromptsResponse& work) {
  for (const v1::PromptLease& lease : work.leases()) {
    RLHF_RETURN_IF_ERROR(CheckKnown(lease.sampling(), "the job's sampling", "this rollout worker"));
    RLHF_RETURN_IF_ERROR(CheckKnown(lease.policy().lora(), "the job's lora", "this rollout worker"));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<v1::SubmitSamplesRequest> SubmissionsOf(std::vector<v1::Sample> samples, size_t most_bytes) {
  std::vector<v1::SubmitSamplesRequest> requests;
  size_t bytes = 0;
  for (v1::Sample& sample : samples) {
    const size_t size = sample.ByteSizeLong();
    if (requests.empty() || bytes + size > most_bytes) {
      requests.emplace_back();
      bytes = 0;
    }
    bytes += size;
    *requests.back().add_samples() = std::move(sample);
  }
  return requests;
}

Worker::Worker(std::shared_ptr<grpc::Channel> coordinator, const v1::RegisterRequest& identity, PolicyLoader* loader,
               MetricsRegistry* metrics, const std::string& evidence_dir, absl::Duration stuck_after)
    : channel_(std::move(coordinator)),
      stub_(v1::FleetService::NewStub(channel_)),
      identity_(identity),
      loader_(loader),
      stuck_(stuck_after),
      metrics_(metrics),
      capacity_(loader->first_capacity()) {
  absl::StatusOr<client::AcceptedLog> log = client::AcceptedLog::Open(evidence_dir, identity.instance_id());
  if (log.ok()) {
    accepted_log_ = *std::move(log);
  } else {
    spdlog::error("no list of accepted samples is kept: {}", log.status().ToString());
  }
}

Worker::~Worker() {
  Drain(absl::ZeroDuration());
}

void Worker::Start() {
  client::FleetSession::Callbacks callbacks;
  callbacks.fill_heartbeat = [this](v1::HeartbeatRequest* request) { FillHeartbeat(request); };
  callbacks.on_heartbeat = [this](const v1::HeartbeatResponse& response) { OnHeartbeat(response); };
  session_ = client::FleetSession::Start(channel_, identity_, std::move(callbacks));
  threads_.emplace_back([this] { LeaseLoop(); });
  threads_.emplace_back([this] { GenerateLoop(); });
  threads_.emplace_back([this] { SubmitLoop(); });
}

bool Worker::ready() const {
  return session_ && !session_->session_id().empty();
}

void Worker::FillHeartbeat(v1::HeartbeatRequest* request) {
  absl::MutexLock lock(&mu_);
  for (const auto& progress : arriving_) {
    v1::LeaseProgress* const held = request->add_progress();
    *held = progress;
    held->set_loading(loading_ > 0);
  }
  for (const auto& progress : progress_) *request->add_progress() = progress;
  for (const auto& progress : unacknowledged_) *request->add_progress() = progress;
  *request->mutable_policy() = policy_;
  request->set_cache_bytes(cache_bytes_);
}

void Worker::OnHeartbeat(const v1::HeartbeatResponse& response) {
  if (response.drain()) draining_ = true;
  absl::MutexLock lock(&mu_);
  revoked_.insert(revoked_.end(), response.revoked().begin(), response.revoked().end());
}

void Worker::LeaseLoop() {
  while (!stopping_) {
    if (draining_ || capacity_ <= 0 || !session_->WaitRegistered(absl::Milliseconds(200))) {
      absl::SleepFor(kIdlePoll);
      continue;
    }
    v1::LeasePromptsRequest request;
    request.set_session_id(session_->session_id());
    request.set_max_samples(capacity_);
    request.set_wait_ms(kLeaseWaitMs);
    v1::LeasePromptsResponse response;
    const auto context = client::MakeContext(absl::Milliseconds(kLeaseWaitMs + 5000));
    const absl::Status status = FromGrpc(stub_->LeasePrompts(context.get(), request, &response));
    if (ReasonOf(status) == v1::UNKNOWN_SESSION) session_->Invalidate(request.session_id());
    if (!status.ok()) {
      absl::SleepFor(absl::Milliseconds(200));
      continue;
    }
    if (response.leases().empty()) continue;
    if (draining_) {
      // Asked for before it knew that it ends.
      for (const auto& lease : response.leases()) HandBack(lease, "", Fault::kUnavailable);
      continue;
    }
    RLHF_FAILPOINT("rollout/leased");
    {
      absl::MutexLock lock(&mu_);
      const size_t before = arriving_.size();
      for (const auto& lease : response.leases()) {
        for (const auto& sample : lease.samples()) {
          v1::LeaseProgress& progress = arriving_.emplace_back();
          *progress.mutable_id() = artifact::SampleIdOf(lease, sample.index());
          progress.set_attempt(sample.attempt());
        }
      }
      capacity_ -= static_cast<int>(arriving_.size() - before);
    }
    ++loading_;
    loader_->Prefetch(response.leases(0).policy());
    --loading_;
    if (!leased_.Push(std::move(response))) return;
  }
}

void Worker::HandBack(const v1::PromptLease& lease, const std::string& error, Fault fault, int64_t needs_cache_bytes) {
  for (const auto& sample : lease.samples()) {
    v1::ReturnedLease returned = ReturnedOf(artifact::SampleIdOf(lease, sample.index()), sample.attempt(), error);
    returned.set_unavailable(fault == Fault::kUnavailable);
    // Both: this worker never can, though others may, and this prompt alone.
    returned.set_permanent(fault == Fault::kPermanent || fault == Fault::kTooSmall);
    returned.set_unsuited(fault == Fault::kUnsuited || fault == Fault::kTooSmall);
    returned.set_needs_cache_bytes(needs_cache_bytes);
    returned_.TryPush(std::move(returned));
  }
}

void Worker::Accept(const v1::LeasePromptsResponse& work) {
  TakeUp(work);
  Arrived(work);
}

void Worker::Arrived(const v1::LeasePromptsResponse& work) {
  Engine* const engine = loader_->engine();
  std::vector<v1::LeaseProgress> progress = engine == nullptr ? std::vector<v1::LeaseProgress>() : engine->Progress();
  absl::MutexLock lock(&mu_);
  progress_ = std::move(progress);
  for (const auto& lease : work.leases()) {
    std::erase_if(arriving_, [&lease](const v1::LeaseProgress& held) {
      return held.id().job_id() == lease.job_id() && held.id().step() == lease.step() &&
             held.id().ordinal() == lease.ordinal() &&
             std::any_of(lease.samples().begin(), lease.samples().end(), [&held](const v1::SampleLease& sample) {
               return sample.index() == held.id().index() && sample.attempt() == held.attempt();
             });
    });
  }
}

void Worker::TakeUp(const v1::LeasePromptsResponse& work) {
  const v1::PolicySource& source = work.leases(0).policy();
  absl::Status switched = CheckKnownParts(work);
  if (switched.ok()) {
    ++loading_;  // no StuckWatch: most of it may be waiting for others, a model's download or a learner's weights
    switched = loader_->Switch(source);
    --loading_;
  }
  if (!switched.ok()) {
    const LogScope scope({.job_id = source.job_id(), .step = source.version().step()});
    spdlog::warn("cannot serve job {} version {}: {}", source.job_id(), source.version().step(), switched.ToString());
    // A superseded version, or a learner that is gone: the coordinator names a newer one with the next lease. What
    // arrived damaged is tried again, so often as an attempt may fail. A broken model stays broken.
    Fault fault = Fault::kUnavailable;
    if (IsUnsuited(switched)) fault = Fault::kUnsuited;
    if (absl::IsInvalidArgument(switched)) fault = Fault::kPermanent;
    if (absl::IsDataLoss(switched)) fault = Fault::kAttempt;
    const std::string why = fault == Fault::kUnsuited ? std::string(switched.message()) : switched.ToString();
    for (const auto& lease : work.leases()) HandBack(lease, why, fault);
    absl::SleepFor(absl::Milliseconds(200));
    return;
  }
  for (const auto& lease : work.leases()) {
    int64_t needs_cache_bytes = 0;
    if (const absl::Status status = loader_->engine()->Add(lease, &needs_cache_bytes); !status.ok()) {
      Fault fault = absl::IsInvalidArgument(status) ? Fault::kPermanent : Fault::kAttempt;
      if (absl::IsResourceExhausted(status)) fault = Fault::kTooSmall;
      HandBack(lease, status.ToString(), fault, needs_cache_bytes);
    } else {
      metrics_.Accepted(lease, absl::Now());
      for (const auto& sample : lease.samples()) {
        if (!TracingOn()) break;
        const std::string name = artifact::SampleName(artifact::SampleIdOf(lease, sample.index()));
        taken_up_[absl::StrCat(lease.job_id(), "/", name)] = absl::Now();
      }
    }
  }
}

void Worker::GenerateLoop() {
  std::optional<v1::LeasePromptsResponse> next;
  absl::Duration mirrored = -absl::InfiniteDuration();  // by the monotonic clock
  while (!stopping_) {
    Engine* engine = loader_->engine();
    const bool idle = engine == nullptr || engine->idle();
    if (!next) next = leased_.Pop(idle ? kIdlePoll : absl::ZeroDuration());
    if (next && (idle || loader_->CanSwitchInPlace(next->leases(0).policy()))) {
      Accept(*next);
      next.reset();
      engine = loader_->engine();
    }
    DropRevoked(engine);
    if (engine != nullptr && !engine->idle()) Step(*engine);
    TellStanding(engine);
    if (engine == nullptr) continue;
    if (engine->idle()) taken_up_.clear();
    if (const absl::Duration now = Clock::Real()->Now(); now - mirrored > kMetricsEvery) {
      metrics_.Mirror(*engine, loader_->counters());
      for (const PolicyLoader::Change& change : loader_->TakeChanges()) metrics_.Changed(change);
      mirrored = now;
    }
  }
}

void Worker::DropRevoked(Engine* engine) {
  std::vector<v1::LeaseProgress> revoked;
  {
    absl::MutexLock lock(&mu_);
    revoked.swap(revoked_);
  }
  if (engine == nullptr) return;
  for (const auto& lease : revoked) engine->Drop(lease.id(), lease.attempt());
}

void Worker::Step(Engine& engine) {
  std::optional<StuckWatch::Work> work(&stuck_);
  RLHF_FAILPOINT("rollout/mid_generation");
  const absl::Time began = absl::Now();
  auto finished = engine.Step();
  const absl::Time ended = absl::Now();
  work.reset();
  if (!finished.ok()) {
    // The batch is lost as a whole; its leases go back and are generated again, here or elsewhere.
    const std::vector<v1::LeaseProgress> lost = engine.Progress();
    const LogScope scope({.job_id = lost.empty() ? "" : lost.front().id().job_id()});
    spdlog::error("generating failed: {}", finished.status().ToString());
    for (const auto& lease : lost) {
      returned_.TryPush(ReturnedOf(lease.id(), lease.attempt(), finished.status().ToString()));
      engine.Drop(lease.id(), lease.attempt());
    }
  } else {
    metrics_.Stepped(ended - began, engine.Progress(), ended);
    metrics_.Finished(*finished, ended);
    TraceGenerated(*finished);
  }
  for (auto& returned : engine.TakeFailed()) returned_.TryPush(std::move(returned));
  if (!finished.ok() || finished->empty()) return;
  RLHF_FAILPOINT("rollout/generated");
  {
    absl::MutexLock lock(&mu_);
    for (const auto& sample : *finished) unacknowledged_.push_back(ProgressOf(sample));
  }
  finished_.Push(*std::move(finished));
}

void Worker::TellStanding(Engine* engine) {
  std::vector<v1::LeaseProgress> progress = engine == nullptr ? std::vector<v1::LeaseProgress>() : engine->Progress();
  absl::MutexLock lock(&mu_);
  progress_ = std::move(progress);
  if (engine != nullptr) policy_ = engine->version();
  cache_bytes_ = engine == nullptr ? 0 : engine->cache_bytes();
  // What has not reached the engine yet takes its room all the same.
  const int samples = engine == nullptr ? loader_->first_capacity() : engine->capacity();
  capacity_ = samples - static_cast<int>(progress_.size() + arriving_.size());
}

void Worker::TraceGenerated(const std::vector<v1::Sample>& samples) {
  if (!TracingOn()) return;
  for (const v1::Sample& sample : samples) {
    const std::string name = artifact::SampleName(sample.id());
    const auto taken_up = taken_up_.find(absl::StrCat(sample.id().job_id(), "/", name));
    if (taken_up == taken_up_.end()) continue;
    SpanRecord span;
    span.context = TraceOf(taken_up->first);
    span.name = "generate";
    span.begin = taken_up->second;
    span.end = absl::Now();
    span.attributes = {{"rlhf.job", sample.id().job_id()},
                       {"rlhf.sample", name},
                       {"rlhf.attempt", absl::StrCat(sample.attempt())},
                       {"rlhf.tokens", absl::StrCat(sample.response_tokens_size())}};
    ExportSpan(std::move(span));
    taken_up_.erase(taken_up);
  }
}

void Worker::SubmitLoop() {
  while (true) {
    auto batch = finished_.Pop(absl::Milliseconds(20));
    if (batch) {
      // Gather what else is there: one durable write for many samples.
      while (auto more = finished_.Pop(absl::ZeroDuration())) {
        batch->insert(batch->end(), std::make_move_iterator(more->begin()), std::make_move_iterator(more->end()));
        if (batch->size() >= 256) break;
      }
      for (v1::SubmitSamplesRequest& request : SubmissionsOf(*std::move(batch), kSubmitBytes))
        Submit(std::move(request));
    }
    GiveBack();
    if (stopping_ && !batch) return;
    if (draining_ && !batch) {
      absl::MutexLock lock(&mu_);
      if (arriving_.empty() && progress_.empty() && unacknowledged_.empty()) drained_ = true;
    }
  }
}

void Worker::Submit(v1::SubmitSamplesRequest request) {
  RLHF_FAILPOINT("rollout/before_submit");
  std::set<absl::StatusCode> told;
  while (!stopping_) {
    if (!session_->WaitRegistered(absl::Milliseconds(200))) continue;
    request.set_session_id(session_->session_id());
    v1::SubmitSamplesResponse response;
    const auto context = client::MakeContext(absl::Seconds(10));
    const Span span("submit samples");
    const absl::Status status = FromGrpc(stub_->SubmitSamples(context.get(), request, &response));
    if (status.ok()) {
      RLHF_FAILPOINT("rollout/after_submit");
      accepted_log_.Accepted(request, response);
      for (const auto& verdict : response.verdicts()) {
        if (!verdict.accepted()) {
          const LogScope scope({.job_id = verdict.id().job_id(),
                                .step = verdict.id().step(),
                                .sample = artifact::SampleName(verdict.id())});
          // What is fenced is an accident of timing; what is malformed is a fault of this process.
          spdlog::log(verdict.reason() == v1::SAMPLE_MALFORMED ? spdlog::level::warn : spdlog::level::info,
                      "sample {}/{} was not taken: {}{}", verdict.id().job_id(), artifact::SampleName(verdict.id()),
                      v1::ErrorReason_Name(verdict.reason()),
                      verdict.reason() == v1::SAMPLE_MALFORMED ? ": the coordinator's log says what it found" : "");
        }
      }
      break;
    }
    const LogScope scope({.job_id = request.samples(0).id().job_id()});
    if (ReasonOf(status) == v1::UNKNOWN_SESSION) {
      session_->Invalidate(request.session_id());
    } else if (AnsweredAlike(status, request)) {
      spdlog::error("{} samples cannot be submitted and are handed back: {}", request.samples_size(),
                    status.ToString());
      const std::string why = absl::StrCat("it cannot be submitted: ", status.message());
      for (const auto& sample : request.samples()) returned_.TryPush(ReturnedOf(sample.id(), sample.attempt(), why));
      break;
    } else if (told.insert(status.code()).second) {
      spdlog::warn("{} samples are not submitted yet, and tried again: {}", request.samples_size(), status.ToString());
    }
    absl::SleepFor(absl::Milliseconds(200));
  }
  absl::MutexLock lock(&mu_);
  for (const auto& sample : request.samples()) {
    std::erase_if(unacknowledged_, [&](const auto& held) { return SameLease(held, sample.id(), sample.attempt()); });
  }
}

void Worker::GiveBack() {
  v1::ReturnLeasesRequest give_back;
  while (auto lease = returned_.Pop(absl::ZeroDuration())) *give_back.add_leases() = *std::move(lease);
  if (give_back.leases_size() == 0) return;
  give_back.set_session_id(session_->session_id());
  v1::ReturnLeasesResponse response;
  const auto context = client::MakeContext(absl::Seconds(5));
  // Lost ones expire by themselves.
  (void)stub_->ReturnLeases(context.get(), give_back, &response);
}

void Worker::Drain(absl::Duration grace) {
  if (threads_.empty()) return;
  draining_ = true;
  const absl::Duration deadline = Clock::Real()->Now() + grace;
  while (!drained_ && Clock::Real()->Now() < deadline) absl::SleepFor(absl::Milliseconds(20));
  {
    absl::MutexLock lock(&mu_);
    arriving_.insert(arriving_.end(), progress_.begin(), progress_.end());
    for (const auto& progress : arriving_) returned_.TryPush(ReturnedOf(progress.id(), progress.attempt(), ""));
  }
  stopping_ = true;
  leased_.Close();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  GiveBack();  // what came after the thread that does it had ended
  session_->Stop();
}

}  // namespace rlhf::rollout
