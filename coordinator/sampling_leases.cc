// Rollout workers: who generates what, and for how long.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

// A lease is slow when it takes so many times the median of the newest results, and at least so long.
constexpr double kHedgeFactor = 2.0;
constexpr absl::Duration kHedgeAtLeast = absl::Milliseconds(500);
constexpr absl::Duration kHedgeEvery = absl::Milliseconds(100);
constexpr size_t kHedgeAfterResults = 8;
// A worker that was lost and may have had the room for a prompt is usually started again, on another node at worst.
constexpr absl::Duration kMayReturn = absl::Minutes(2);
constexpr absl::Duration kWorkersCounted = absl::Milliseconds(200);  // how old their count may be

}  // namespace

void SamplingImpl::LeasePrompts(const v1::LeasePromptsRequest& request, Done<v1::LeasePromptsResponse> done,
                                std::function<bool()> gone) {
  const absl::StatusOr<const Session*> session = fleet_->Find(request.session_id());
  if (!session.ok()) return done(session.status());
  const absl::Duration deadline = callers_.Now() + absl::Milliseconds(request.wait_ms());
  waiters_.push_back({request, std::move(done), deadline, std::move(gone)});
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
  if (callers_.Settling()) return;
  bool nothing_for_idle = false;  // an idle worker got nothing: neither will the next one
  for (auto it = waiters_.begin(); it != waiters_.end() && (AnyQueued() || HedgeDue());) {
    const absl::StatusOr<const Session*> session = fleet_->Find(it->request.session_id());
    if (!session.ok()) {
      it->done(session.status());
      it = waiters_.erase(it);
      continue;
    }
    if (callers_.TooLate(it->deadline) || (it->gone && it->gone())) {
      it->done(v1::LeasePromptsResponse());
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

std::vector<SampleKey> SamplingImpl::LeasableBy(ActiveJob& job, const std::string& session_id, size_t most) {
  if (job.paused || !job.Suits(session_id)) return {};
  // Later steps wait for their policy: what an older one made of them would be stale.
  const SampleKey too_early = {job.plan.policy.version().step() + job.plan.max_policy_lag + 2, 0, 0};
  return job.room.First(session_id, job.ledger.queued(), too_early, most,
                        [&job](const SampleKey& key) { return job.PromptOf(key); });
}

bool SamplingImpl::Serves(ActiveJob& job, const std::string& session_id) {
  return job.Suits(session_id) && (!job.room.RefusedAny(session_id) || !LeasableBy(job, session_id, 1).empty());
}

bool SamplingImpl::AnyQueued() const {
  for (const auto& [id, job] : jobs_) {
    if (Leasable(*job)) return true;
  }
  return false;
}

bool SamplingImpl::PassedOver(const std::string& session_id) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
    const ActiveJob& job = *entry.second;
    if (!Leasable(job)) return false;
    return !job.Suits(session_id) || job.room.RefusedAny(session_id);
  });
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
    const bool mine = job->Holds(session.session_id);
    if (mine) holds = job.get();
    const bool wants = Leasable(*job);
    const int points = job->worker_patience.Points(now, wants);
    if (!wants && job->leases.empty()) continue;
    if (holds == job.get() || (holds == nullptr && last != last_job_.end() && id == last->second))
      current = static_cast<int>(claims.size());
    // As if this worker were free: what it holds is no reason for another to get it, or not to.
    claims.push_back({job->plan.priority + points, job->plan.project, job->plan.submitter,
                      job->workers() - (mine ? 1 : 0), wants && Serves(*job, session.session_id)});
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

  const std::vector<SampleKey> keys = LeasableBy(*job, session.session_id, static_cast<size_t>(limit));
  if (keys.empty()) return false;
  last_job_[session.session_id] = job->plan.job_id;
  job->worker_patience.Granted(loop_->clock().Now());
  for (const SampleKey& key : keys) AddLease(*job, key, session, /*hedge=*/false, response, batch);
  return true;
}

std::optional<absl::Duration> SamplingImpl::UsualTwice(const ActiveJob& job) const {
  if (job.took.size() < kHedgeAfterResults) return std::nullopt;
  std::vector<absl::Duration> took(job.took.begin(), job.took.end());
  std::nth_element(took.begin(), took.begin() + static_cast<std::ptrdiff_t>(took.size() / 2), took.end());
  return std::max(kHedgeAtLeast, kHedgeFactor * took[took.size() / 2]);
}

bool SamplingImpl::TryHedge(const Session& session, int max_samples, v1::LeasePromptsResponse* response,
                            WriteBatch* batch) {
  const absl::Duration now = loop_->clock().Now();
  bool passed_over = false;
  for (const auto& [id, job] : jobs_) {
    // Who is idle would be one more worker of the job's.
    if (job->paused || job->leases.empty() || OverQuota(*job)) continue;
    if (!job->Suits(session.session_id)) {
      passed_over = true;
      continue;
    }
    const std::optional<absl::Duration> usual_twice = UsualTwice(*job);
    const absl::Duration slow = usual_twice.value_or(options_.no_progress);
    std::vector<SampleKey> keys;
    for (const auto& [key, lease] : job->leases) {
      if (static_cast<int>(keys.size()) == max_samples) break;
      if (lease.session_id == session.session_id || now - lease.since <= slow || job->slow.Find(key) != nullptr)
        continue;
      // Before it is known what is usual, only what has not begun: a model that one worker's volume does not give.
      if (!usual_twice.has_value() && lease.tokens_done > 0) continue;
      const bool room = job->HasRoom(session.session_id, key);
      passed_over = passed_over || !room;
      if (room) keys.push_back(key);
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
    if (!job->leases.empty()) return true;
  }
  return false;
}

bool SamplingImpl::OverQuota(const ActiveJob& job) const {
  if (options_.quotas == nullptr) return false;
  int of_project = 0, of_submitter = 0;
  for (const auto& [id, other] : jobs_) {
    if (other->plan.project != job.plan.project) continue;
    of_project += other->workers();
    of_submitter += other->plan.submitter == job.plan.submitter ? other->workers() : 0;
  }
  const int project = options_.quotas->Of(job.plan.project, "").max_rollout_workers();
  const int submitter = options_.quotas->Of(job.plan.project, job.plan.submitter).max_rollout_workers();
  return (project > 0 && of_project >= project) || (submitter > 0 && of_submitter >= submitter);
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

std::vector<std::pair<SampleKey, std::string>> SamplingImpl::TooLarge(const ActiveJob& job, bool cordoned_too) const {
  std::vector<std::pair<SampleKey, std::string>> samples;
  if (!job.room.AnyRefused()) return samples;
  std::vector<std::string> workers;
  for (const Session* worker : fleet_->Sessions(v1::ROLE_ROLLOUT_WORKER)) {
    const bool works = cordoned_too || !(worker->cordoned || worker->draining);
    if (works && job.Suits(worker->session_id)) workers.push_back(worker->session_id);
  }
  const std::map<size_t, std::string> prompts = job.room.RefusedByAll(workers);
  if (prompts.empty()) return samples;
  for (const SampleKey& key : job.ledger.queued()) {
    if (const auto why = prompts.find(job.PromptOf(key)); why != prompts.end()) samples.emplace_back(key, why->second);
  }
  return samples;
}

void SamplingImpl::FailTooLarge(ActiveJob& job) {
  if (!job.room.AnyRefused() || loop_->clock().Now() - rollout_worker_lost_ < kMayReturn) return;
  WriteBatch batch;
  for (const auto& [key, why] : TooLarge(job, /*cordoned_too=*/true))
    Release(job, key, absl::StrCat("no rollout worker has the room for it: ", why), Ending::kPermanent, &batch);
  Write(job.plan.job_id, std::move(batch));
}

void SamplingImpl::OnHeartbeat(const Session& session, const v1::HeartbeatRequest& request,
                               v1::HeartbeatResponse* response) {
  if (session.identity.role() == v1::ROLE_REWARD_SERVER) OnScorerHeartbeat(session, request.progress_counter());
  if (session.identity.role() != v1::ROLE_ROLLOUT_WORKER) return;
  const absl::Duration now = loop_->clock().Now();
  // Whoever has dropped all it was stuck on works again; one that hangs goes on reporting it.
  if (request.progress().empty()) stuck_.erase(session.session_id);
  // The room is that beside the model it serves now: for prompts of another model it says nothing.
  const auto last = last_job_.find(session.session_id);
  const ActiveJob* const served = last == last_job_.end() ? nullptr : Find(last->second);
  bool more_room = false;
  for (const auto& [id, job] : jobs_) {
    if (served != nullptr && job->plan.policy.artifact() == served->plan.policy.artifact())
      more_room = job->room.HasNow(session.session_id, request.cache_bytes()) || more_room;
  }
  if (more_room) ServeSoon();
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
    lease.loading = progress.loading();
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
  for (const auto& [id, job] : jobs_) job->unsuited_scorers.erase(session.session_id);
  if (session.identity.role() != v1::ROLE_ROLLOUT_WORKER) return;
  rollout_worker_lost_ = loop_->clock().Now();
  for (const auto& [id, job] : jobs_) {
    job->fan_out.Leave(session.session_id);
    // Started anew, it may be another.
    job->unsuited.erase(session.session_id);
    job->room.Forget(session.session_id);
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
