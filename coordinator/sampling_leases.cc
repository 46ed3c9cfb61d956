// Rollout workers: who generates what, for how long, and which results count.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "artifact/sample_digest.h"
#include "common/canonical_bytes.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

// A lease is slow when it takes so many times the median of the newest results, and at least so long.
constexpr double kHedgeFactor = 2.0;
// A worker that is lost says little about its samples: so many losses count as one failed attempt.
constexpr int kLossesAnAttempt = 10;
constexpr absl::Duration kHedgeAtLeast = absl::Milliseconds(500);
constexpr absl::Duration kHedgeEvery = absl::Milliseconds(100);
constexpr size_t kHedgeAfterResults = 8, kResultsRemembered = 64;
constexpr absl::Duration kWorkersCounted = absl::Milliseconds(200);  // how old their count may be

// What is wrong with a sample's content; empty when nothing.
std::string ProblemOf(const v1::Sample& sample) {
  if (sample.response_tokens().empty()) return "it has no response token";
  if (sample.behaviour_log_probs_size() != sample.response_tokens_size()) {
    return absl::StrCat("expected a log-probability for each of ", sample.response_tokens_size(),
                        " response tokens, found ", sample.behaviour_log_probs_size());
  }
  for (const float log_prob : sample.behaviour_log_probs()) {
    if (!std::isfinite(log_prob)) return "a behaviour log-probability is not finite";
  }
  return "";
}

// Aborted: fenced, or of a job that is over, and to be discarded.
void Refuse(v1::ErrorReason reason, absl::StatusCode code, v1::SampleVerdict* verdict) {
  verdict->set_reason(reason);
  verdict->set_code(static_cast<int>(code));
}

}  // namespace

void SamplingImpl::LeasePrompts(const v1::LeasePromptsRequest& request, Done<v1::LeasePromptsResponse> done) {
  const absl::StatusOr<const Session*> session = fleet_->Find(request.session_id());
  if (!session.ok()) return done(session.status());
  waiters_.push_back({request, std::move(done), loop_->clock().Now() + absl::Milliseconds(request.wait_ms())});
  ServeWaiters();
}

void SamplingImpl::ServeSoon() {
  if (std::exchange(serve_posted_, true)) return;
  loop_->Post([this] {
    serve_posted_ = false;
    ServeWaiters();
  });
}

void SamplingImpl::ServeWaiters() {
  bool nothing_for_idle = false;  // an idle worker got nothing: neither will the next one
  for (auto it = waiters_.begin(); it != waiters_.end() && (AnyQueued() || HedgeDue());) {
    const absl::StatusOr<const Session*> session = fleet_->Find(it->request.session_id());
    if (!session.ok()) {
      it->done(session.status());
      it = waiters_.erase(it);
      continue;
    }
    v1::LeasePromptsResponse response;
    WriteBatch batch;
    const bool idle = HeldBy((*session)->session_id) == 0;
    const bool may = !(*session)->draining && !(*session)->cordoned && stuck_.count((*session)->session_id) == 0;
    const bool tries = may && !(idle && nothing_for_idle);
    const int most = it->request.max_samples();
    const bool leased = tries && TryLease(**session, most, &response, &batch);
    nothing_for_idle = nothing_for_idle || (tries && idle && !leased && !PassedOver((*session)->session_id));
    if (!leased && !(may && idle && HedgeDue() && TryHedge(**session, most, &response, &batch))) {
      ++it;
      continue;
    }
    RLHF_FAILPOINT("coordinator/leasing");
    Done<v1::LeasePromptsResponse> done = std::move(it->done);
    it = waiters_.erase(it);
    store_->Commit(std::move(batch),
                   [done = std::move(done), response = std::move(response)](absl::Status status) mutable {
                     if (status.ok()) {
                       done(std::move(response));
                     } else {
                       done(status);
                     }
                   });
  }
}

bool SamplingImpl::Leasable(const ActiveJob& job) {
  if (job.paused || job.ledger.queued().empty()) return false;
  const int64_t step = std::get<0>(*job.ledger.queued().begin());
  return step - 1 - job.plan.max_policy_lag <= job.plan.policy.version().step();
}

bool SamplingImpl::AnyQueued() const {
  for (const auto& [id, job] : jobs_) {
    if (Leasable(*job)) return true;
  }
  return false;
}

bool SamplingImpl::PassedOver(const std::string& session_id) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [&](const auto& entry) { return !entry.second->Suits(session_id) && Leasable(*entry.second); });
}

size_t SamplingImpl::HeldBy(const std::string& session_id) const {
  size_t held = 0;
  for (const auto& [id, job] : jobs_) {
    held += job->leases.HeldBy(session_id) + job->slow.HeldBy(session_id);
  }
  return held;
}

ActiveJob* SamplingImpl::PickJob(const Session& session) {
  const absl::Duration now = loop_->clock().Now();
  std::vector<Claim> claims;
  std::vector<ActiveJob*> jobs;
  int current = -1;
  const auto last = last_job_.find(session.session_id);
  ActiveJob* holds = nullptr;
  for (const auto& [id, job] : jobs_) {
    const bool leased = job->leases.HeldBy(session.session_id) > 0;
    if (leased || job->slow.HeldBy(session.session_id) > 0) holds = job.get();
    const bool wants = Leasable(*job);
    const int points = job->worker_patience.Points(now, wants);
    if (!wants && job->leases.empty()) continue;
    if (holds == job.get() || (holds == nullptr && last != last_job_.end() && id == last->second))
      current = static_cast<int>(claims.size());
    // As if this worker were free: what it holds is no reason for another to get it, or not to.
    claims.push_back({job->plan.priority + points, job->plan.project, job->plan.submitter,
                      static_cast<int>(job->leases.workers()) - (leased ? 1 : 0),
                      wants && job->Suits(session.session_id)});
    jobs.push_back(job.get());
  }
  const int picked = PickClaim(claims, QuotaRule{options_.quotas, &v1::Quota::max_rollout_workers}, current);
  if (picked < 0) return nullptr;
  ActiveJob* const job = jobs[static_cast<size_t>(picked)];
  // A worker is moved only between leases: while it has some of another job it gets nothing, and is soon free.
  return holds == nullptr || holds == job ? job : nullptr;
}

int SamplingImpl::AvailableWorkers() {
  const absl::Duration now = loop_->clock().Now();
  if (available_workers_ <= 0 || now - available_at_ > kWorkersCounted) {
    available_at_ = now;
    available_workers_ = 0;
    for (const Session* worker : fleet_->Sessions(v1::ROLE_ROLLOUT_WORKER))
      available_workers_ += worker->draining || worker->cordoned ? 0 : 1;
  }
  return std::max(1, available_workers_);
}

int SamplingImpl::SuitedWorkers(const ActiveJob& job) {
  return std::max(1, AvailableWorkers() - static_cast<int>(job.unsuited.size()));
}

bool SamplingImpl::TryLease(const Session& session, int max_samples, v1::LeasePromptsResponse* response,
                            WriteBatch* batch) {
  ActiveJob* job = PickJob(session);
  if (job == nullptr || max_samples <= 0) return false;
  // A fair share, so that the first to ask does not leave the others idle; whole prompts where possible: their samples
  // share one prefill.
  const int workers = SuitedWorkers(*job);
  const int queued = static_cast<int>(job->ledger.queued().size());
  const int per_prompt = std::max(1, job->plan.samples_per_prompt);
  const int share = (queued + workers - 1) / workers;
  const int limit = std::min(max_samples, (share + per_prompt - 1) / per_prompt * per_prompt);

  std::vector<SampleKey> keys;
  for (const SampleKey& key : job->ledger.queued()) {
    // Later steps wait for their policy: what an older one made of them would be stale.
    const bool too_early = std::get<0>(key) - 1 - job->plan.max_policy_lag > job->plan.policy.version().step();
    if (static_cast<int>(keys.size()) == limit || too_early) break;
    keys.push_back(key);
  }
  if (keys.empty()) return false;
  last_job_[session.session_id] = job->plan.job_id;
  job->worker_patience.Granted(loop_->clock().Now());
  for (const SampleKey& key : keys) AddLease(*job, key, session, /*hedge=*/false, response, batch);
  return true;
}

bool SamplingImpl::TryHedge(const Session& session, int max_samples, v1::LeasePromptsResponse* response,
                            WriteBatch* batch) {
  const absl::Duration now = loop_->clock().Now();
  bool passed_over = false;
  for (const auto& [id, job] : jobs_) {
    if (job->paused || job->took.size() < kHedgeAfterResults) continue;
    if (!job->Suits(session.session_id)) {
      passed_over = true;
      continue;
    }
    std::vector<absl::Duration> took(job->took.begin(), job->took.end());
    std::nth_element(took.begin(), took.begin() + static_cast<std::ptrdiff_t>(took.size() / 2), took.end());
    const absl::Duration slow = std::max(kHedgeAtLeast, kHedgeFactor * took[took.size() / 2]);
    std::vector<SampleKey> keys;
    for (const auto& [key, lease] : job->leases) {
      if (static_cast<int>(keys.size()) == max_samples) break;
      if (lease.session_id != session.session_id && now - lease.since > slow && job->slow.Find(key) == nullptr)
        keys.push_back(key);
    }
    if (keys.empty()) continue;
    const LogScope scope({.job_id = id});
    spdlog::info("job {}: {} leases take longer than {}: {} tries them too", id, keys.size(),
                 absl::FormatDuration(slow), session.identity.instance_id());
    for (const SampleKey& key : keys) AddLease(*job, key, session, /*hedge=*/true, response, batch);
    return true;
  }
  if (!passed_over) hedge_looked_at_ = now;
  return false;
}

bool SamplingImpl::HedgeDue() const {
  if (loop_->clock().Now() - hedge_looked_at_ < kHedgeEvery) return false;
  for (const auto& [id, job] : jobs_) {
    if (!job->leases.empty() && job->took.size() >= kHedgeAfterResults) return true;
  }
  return false;
}

v1::PolicySource SamplingImpl::PolicyFor(ActiveJob& job, const Session& session) {
  v1::PolicySource policy = job.plan.policy;
  if (policy.addresses().empty() || options_.weights_fan_out <= 0) return policy;
  // Where the learner serves all of them anyway, nobody need keep anything for others.
  policy.set_relay(!session.identity.address().empty() && AvailableWorkers() > options_.weights_fan_out);
  policy.clear_addresses();
  for (std::string& source :
       job.fan_out.SourcesOf(session.session_id, policy.relay() ? session.identity.address() : ""))
    policy.add_addresses(std::move(source));
  policy.mutable_addresses()->MergeFrom(job.plan.policy.addresses());
  return policy;
}

void SamplingImpl::AddLease(ActiveJob& job, const SampleKey& key, const Session& session, bool hedge,
                            v1::LeasePromptsResponse* response, WriteBatch* batch) {
  const auto& [step, ordinal, index] = key;
  const int leases = response->leases_size();
  v1::PromptLease* lease = leases > 0 ? response->mutable_leases(leases - 1) : nullptr;
  if (lease == nullptr || lease->step() != step || lease->ordinal() != ordinal) {
    lease = response->add_leases();
    lease->set_job_id(job.plan.job_id);
    lease->set_step(step);
    lease->set_ordinal(ordinal);
    const auto& prompts = *job.plan.prompts;
    *lease->mutable_prompt() = prompts[static_cast<size_t>(job.ledger.Find(key)->prompt_index()) % prompts.size()];
    *lease->mutable_sampling() = job.plan.sampling;
    lease->set_seed(job.plan.seed);
    lease->set_stream(job.plan.stream);
    *lease->mutable_policy() = PolicyFor(job, session);
  }
  if (hedge) job.slow.Set(key, job.leases.find(key)->second);
  const std::string& worker = session.identity.instance_id();
  const int32_t attempt = hedge ? job.ledger.Hedge(key, worker, batch) : job.ledger.Lease(key, worker, batch);
  v1::SampleLease* sample = lease->add_samples();
  sample->set_index(index);
  sample->set_attempt(attempt);
  const absl::Duration now = loop_->clock().Now();
  job.leases.Set(key, {worker, session.session_id, attempt, now, now, now, 0});
}

LeaseTable* SamplingImpl::TableOf(ActiveJob& job, const SampleKey& key, int32_t attempt,
                                  const std::string& instance_id) {
  for (LeaseTable* table : {&job.leases, &job.slow}) {
    const HeldLease* lease = table->Find(key);
    if (lease == nullptr || lease->attempt != attempt) continue;
    if (lease->instance_id == instance_id) return table;
    // An attempt is leased once: no timing makes this happen.
    spdlog::warn("job {}: {} names a lease of {} as its own (step {}, attempt {}): ignored", job.plan.job_id,
                 instance_id, lease->instance_id, std::get<0>(key), attempt);
  }
  return nullptr;
}

void SamplingImpl::EndAttempt(ActiveJob& job, const SampleKey& key, int32_t attempt, const std::string& error,
                              Ending ending, WriteBatch* batch) {
  const auto slow = job.slow.find(key);
  if (slow == job.slow.end() || ending == Ending::kPermanent) return Release(job, key, error, ending, batch);
  // The other one goes on.
  if (slow->second.attempt != attempt) job.leases.Set(key, slow->second);
  job.slow.erase(key);
}

void SamplingImpl::SubmitSamples(const v1::SubmitSamplesRequest& request, Done<v1::SubmitSamplesResponse> done) {
  const absl::StatusOr<const Session*> session = fleet_->Find(request.session_id());
  if (!session.ok()) return done(session.status());
  v1::SubmitSamplesResponse response;
  WriteBatch batch;
  std::set<std::string> touched;
  for (const v1::Sample& sample : request.samples()) {
    v1::SampleVerdict& verdict = *response.add_verdicts();
    ActiveJob* job = Find(sample.id().job_id());
    if (job == nullptr) {
      Refuse(v1::JOB_NOT_ACTIVE, absl::StatusCode::kAborted, &verdict);
    } else {
      verdict = Take(*job, sample, (*session)->identity.instance_id(), &batch);
      touched.insert(sample.id().job_id());
    }
    *verdict.mutable_id() = sample.id();
  }
  CommitThenServe(std::move(batch), touched,
                  [done = std::move(done), response = std::move(response)](absl::Status status) mutable {
                    if (!status.ok()) return done(status);
                    done(std::move(response));
                  });
}

void SamplingImpl::CommitThenServe(WriteBatch batch, const std::set<std::string>& touched,
                                   absl::AnyInvocable<void(absl::Status)> done) {
  store_->Commit(std::move(batch), [this, touched, done = std::move(done)](absl::Status status) mutable {
    loop_->Post([this, touched, status] {
      for (const std::string& job_id : touched) {
        if (status.ok()) AfterDurable(job_id);
      }
    });
    done(status);
  });
}

v1::SampleVerdict SamplingImpl::Take(ActiveJob& job, const v1::Sample& sample, const std::string& worker,
                                     WriteBatch* batch) {
  v1::SampleVerdict verdict;
  const SampleKey key = KeyOfSample(sample.id());
  const v1::SampleRow* row = job.ledger.Find(key);
  const auto refuse = [&verdict](v1::ErrorReason reason, absl::StatusCode code = absl::StatusCode::kAborted) {
    Refuse(reason, code, &verdict);
    return verdict;
  };
  const bool leased = row != nullptr && row->state() == v1::LEASED;
  LeaseTable* const lease = leased ? TableOf(job, key, sample.attempt(), worker) : nullptr;
  if (row == nullptr || row->state() == v1::QUEUED || row->state() == v1::SAMPLE_CANCELLED ||
      (leased && lease == nullptr)) {
    return refuse(v1::STALE_ATTEMPT);
  }
  v1::Sample stored = sample;
  stored.clear_score();
  stored.set_worker_id(worker);
  *stored.mutable_prompt() = (*job.plan.prompts)[static_cast<size_t>(row->prompt_index()) % job.plan.prompts->size()];
  std::string bytes = CanonicalBytes(stored);
  const std::string digest = artifact::Sha256Hex(bytes);
  if (!leased) {
    // The reply to an earlier delivery was lost: the same bytes are answered alike. Other bytes of the attempt that was
    // taken are a second opinion nobody may have; of another attempt, the slower one of two.
    if (row->digest() == digest) {
      verdict.set_accepted(true);
      return verdict;
    }
    const absl::StatusOr<v1::Sample> taken = CachedSample(job, *row);
    return refuse(taken.ok() && taken->attempt() == sample.attempt() ? v1::DIGEST_MISMATCH : v1::STALE_ATTEMPT);
  }
  if (const std::string problem = ProblemOf(sample); !problem.empty()) {
    const LogScope scope(
        {.job_id = job.plan.job_id, .step = sample.id().step(), .sample = artifact::SampleName(sample.id())});
    spdlog::warn("job {}: a sample of {} is refused: {}", job.plan.job_id, worker, problem);
    EndAttempt(job, key, sample.attempt(), absl::StrCat("refused: ", problem), Ending::kFailed, batch);
    return refuse(v1::SAMPLE_MALFORMED, absl::StatusCode::kInvalidArgument);
  }
  const absl::Duration generated_in = loop_->clock().Now() - lease->Find(key)->since;
  v1::SampleTimes times;
  times.set_generated(absl::ToUnixMicros(loop_->clock().WallNow()));
  times.set_leased(times.generated() - absl::ToInt64Microseconds(generated_in));
  job.took.push_back(generated_in);
  if (job.took.size() > kResultsRemembered) job.took.pop_front();
  job.leases.erase(key);
  job.slow.erase(key);
  job.ledger.Generated(key, payloads_->Append(std::move(bytes)), digest, sample.version_low(), batch, times);
  if (!job.plan.score) job.ledger.Scored(key, {}, batch);
  const absl::Duration now = loop_->clock().Now();
  job.finished.push_back({now, 1, sample.response_tokens_size()});
  job.last_finished = now;
  while (now - job.finished.front().at > kRateWindow) job.finished.pop_front();
  job.cache[key] = std::move(stored);
  if (!job.plan.score) job.last_problem.clear();
  verdict.set_accepted(true);
  return verdict;
}

void SamplingImpl::ReturnLeases(const v1::ReturnLeasesRequest& request, Done<v1::ReturnLeasesResponse> done) {
  const absl::StatusOr<const Session*> session = fleet_->Find(request.session_id());
  if (!session.ok()) return done(session.status());
  WriteBatch batch;
  std::set<std::string> touched;
  for (const v1::ReturnedLease& lease : request.leases()) {
    ActiveJob* job = Find(lease.id().job_id());
    if (job == nullptr) continue;
    const SampleKey key = KeyOfSample(lease.id());
    const v1::SampleRow* row = job->ledger.Find(key);
    const std::string& worker = (*session)->identity.instance_id();
    if (row == nullptr || row->state() != v1::LEASED || TableOf(*job, key, lease.attempt(), worker) == nullptr)
      continue;
    const LogScope scope(
        {.job_id = lease.id().job_id(), .step = lease.id().step(), .sample = artifact::SampleName(lease.id())});
    if (lease.unsuited()) {
      if (job->unsuited.try_emplace(request.session_id(), absl::StrCat(worker, ": ", lease.error())).second)
        spdlog::warn("job {}: {} cannot serve it and gets none of it: {}", lease.id().job_id(), worker, lease.error());
      job->fan_out.Leave(request.session_id());
    } else if (!lease.error().empty()) {
      spdlog::warn("job {}: generating failed at {}: {}", lease.id().job_id(), worker, lease.error());
    }
    if (!lease.error().empty()) job->last_problem = absl::StrCat(worker, ": ", lease.error());
    EndAttempt(*job, key, lease.attempt(), lease.unavailable() || lease.unsuited() ? "" : lease.error(),
               lease.permanent() ? Ending::kPermanent : Ending::kFailed, &batch);
    touched.insert(lease.id().job_id());
  }
  CommitThenServe(std::move(batch), touched, [done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return done(status);
    done(v1::ReturnLeasesResponse());
  });
}

void SamplingImpl::Release(ActiveJob& job, const SampleKey& key, const std::string& error, Ending ending,
                           WriteBatch* batch) {
  job.leases.erase(key);
  job.slow.erase(key);
  if (error.empty()) return job.ledger.Requeue(key, batch);
  const bool permanent = ending == Ending::kPermanent;
  const int failures = ending == Ending::kLost ? ++job.losses[key] : ++job.failures[key];
  const int most = job.plan.max_attempts * (ending == Ending::kLost ? kLossesAnAttempt : 1);
  if (!permanent && failures < most) return job.ledger.Requeue(key, batch);
  const std::string reason = permanent ? error : absl::StrCat("failed ", failures, " times, at last: ", error);
  job.ledger.Fail(key, reason, batch);
  loop_->Post([this, job_id = job.plan.job_id, row = *job.ledger.Find(key)] {
    if (const ActiveJob* active = Find(job_id)) active->listener->OnSampleFailed(job_id, row);
  });
}

void SamplingImpl::ExpireLeases(ActiveJob& job) {
  const absl::Duration now = loop_->clock().Now();
  struct Expired {
    SampleKey key;
    int32_t attempt;
    const char* why;
  };
  std::vector<Expired> expired;
  for (const auto* leases : {&job.leases, &job.slow}) {
    for (const auto& [key, lease] : *leases) {
      if (now - lease.last_seen > options_.lease) {
        expired.push_back({key, lease.attempt, "its worker stopped reporting it"});
      } else if (now - lease.last_progress > options_.no_progress) {
        expired.push_back({key, lease.attempt, "its worker made no progress on it"});
        stuck_.insert(lease.session_id);
      }
    }
  }
  if (expired.empty()) return;
  leases_expired_ += static_cast<int64_t>(expired.size());
  WriteBatch batch;
  for (const Expired& one : expired) EndAttempt(job, one.key, one.attempt, one.why, Ending::kLost, &batch);
  const LogScope scope({.job_id = job.plan.job_id});
  spdlog::warn("job {}: {} leases expired: {}", job.plan.job_id, expired.size(), expired.front().why);
  Write(job.plan.job_id, std::move(batch));
}

void SamplingImpl::OnHeartbeat(const Session& session, const v1::HeartbeatRequest& request,
                               v1::HeartbeatResponse* response) {
  if (session.identity.role() != v1::ROLE_ROLLOUT_WORKER) return;
  const absl::Duration now = loop_->clock().Now();
  // Whoever has dropped all it was stuck on works again; one that hangs goes on reporting it.
  if (request.progress().empty()) stuck_.erase(session.session_id);
  for (const v1::LeaseProgress& progress : request.progress()) {
    ActiveJob* job = Find(progress.id().job_id());
    const SampleKey key = KeyOfSample(progress.id());
    const v1::SampleRow* row = job == nullptr ? nullptr : job->ledger.Find(key);
    LeaseTable* const held = row == nullptr || row->state() != v1::LEASED
                                 ? nullptr
                                 : TableOf(*job, key, progress.attempt(), session.identity.instance_id());
    if (held == nullptr) {
      *response->add_revoked() = progress;
      continue;
    }
    HeldLease& lease = held->Claim(key, session.session_id);
    lease.last_seen = now;
    if (progress.tokens_done() > lease.tokens_done) {
      lease.tokens_done = progress.tokens_done();
      lease.last_progress = now;
      stuck_.erase(session.session_id);
    } else if (progress.loading() && now - lease.since <= options_.longest_load) {
      lease.last_progress = now;
    }
  }
}

void SamplingImpl::OnLost(const Session& session) {
  reward_servers_.erase(session.session_id);
  stuck_.erase(session.session_id);
  last_job_.erase(session.session_id);
  if (session.identity.role() != v1::ROLE_ROLLOUT_WORKER) return;
  for (const auto& [id, job] : jobs_) {
    job->fan_out.Leave(session.session_id);
    job->unsuited.erase(session.session_id);  // started anew, it may be another
    std::vector<std::pair<SampleKey, int32_t>> held;
    for (const auto* leases : {&job->leases, &job->slow}) {
      for (const auto& [key, lease] : *leases) {
        if (lease.session_id == session.session_id) held.emplace_back(key, lease.attempt);
      }
    }
    WriteBatch batch;
    for (const auto& [key, attempt] : held)
      EndAttempt(*job, key, attempt, absl::StrCat("worker ", session.identity.instance_id(), " was lost"),
                 Ending::kLost, &batch);
    Write(id, std::move(batch));
  }
  ServeSoon();
}

}  // namespace rlhf::coordinator
