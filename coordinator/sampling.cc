#include "coordinator/sampling.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

// From then on it is said: a usual change of weights takes less.
constexpr absl::Duration kLongLoad = absl::Seconds(5);
constexpr int64_t kStepsKept =
    8;  // ended samples of so many steps stay in memory: late duplicates are recognised by them

int64_t StepOfKey(const std::string& job_id, absl::string_view key) {
  const size_t from = Ledger::Prefix(job_id).size();
  uint64_t step = 0;
  for (const char c : key.substr(from, 8)) step = step << 8 | static_cast<uint8_t>(c);
  return static_cast<int64_t>(step);
}

}  // namespace

SamplingImpl::SamplingImpl(EventLoop* loop, StateStore* store, PayloadStore* payloads, Fleet* fleet,
                           RewardClient* reward, const SamplingOptions& options)
    : loop_(loop),
      store_(store),
      payloads_(payloads),
      fleet_(fleet),
      reward_(reward),
      options_(options),
      rollout_worker_lost_(loop->clock().Now()),
      callers_(&loop->clock(), options.callers_clock) {
  fleet_->AddListener(this);
}

std::unique_ptr<Sampling> MakeSampling(EventLoop* loop, StateStore* store, PayloadStore* payloads, Fleet* fleet,
                                       RewardClient* reward, const SamplingOptions& options) {
  return std::make_unique<SamplingImpl>(loop, store, payloads, fleet, reward, options);
}

ActiveJob* SamplingImpl::Find(const std::string& job_id) const {
  const auto it = jobs_.find(job_id);
  return it == jobs_.end() ? nullptr : it->second.get();
}

absl::Status SamplingImpl::AddJob(SamplingPlan plan, SamplingListener* listener) {
  if (plan.prompts == nullptr || plan.prompts->empty())
    return absl::InvalidArgumentError(absl::StrCat("job ", plan.job_id, " has no prompts"));
  const std::string job_id = plan.job_id;
  auto job = std::make_unique<ActiveJob>(std::move(plan), listener, options_.weights_fan_out);
  const absl::Duration now = loop_->clock().Now();
  job->added = job->last_finished = now;
  RLHF_ASSIGN_OR_RETURN(const v1::LedgerBase base, BaseOf(job_id));
  job->ledger.RestoreBase(base);
  // What memory keeps of the past: steps that a rollback may come back to.
  const absl::StatusOr<std::string> last = store_->LastKey(Table::kSamples, Ledger::Prefix(job_id));
  if (!last.ok() && !absl::IsNotFound(last.status())) return last.status();
  const int64_t newest = last.ok() ? StepOfKey(job_id, *last) : 0;
  RLHF_RETURN_IF_ERROR(ScanRows(job_id, base.through_step(), [&](const v1::SampleRow& row, bool archived) {
    if (job->plan.delivers && !archived && row.state() == v1::SCORED) {
      // Announced like others that are open: all may have been scored.
      job->announced.try_emplace(row.id().step(), false);
      return job->ledger.RestoreLetGo(row);
    }
    job->ledger.Restore(row, archived, row.id().step() > newest - kStepsKept);
    if (archived) return;
    // It failed, and what comes of that had not been written.
    if (row.state() == v1::SAMPLE_FAILED) job->announced.try_emplace(row.id().step(), false);
    if (!IsOpen(row.state())) return;
    if (row.state() == v1::LEASED)
      job->leases.Set(KeyOfSample(row.id()), {row.worker_id(), "", row.attempt(), now, now, now, 0});
    // What was open before a restart is announced like what is issued after it.
    if (row.state() != v1::ASSIGNED) job->announced.try_emplace(row.id().step(), false);
  }));
  ended_.erase(job_id);
  jobs_[job_id] = std::move(job);
  loop_->Post([this, job_id] { AfterDurable(job_id); });
  return absl::OkStatus();
}

void SamplingImpl::RemoveJob(const std::string& job_id) {
  if (const ActiveJob* job = Find(job_id)) ended_[job_id] = job->ledger.counts();
  jobs_.erase(job_id);
}

void SamplingImpl::SetPaused(const std::string& job_id, bool paused) {
  if (ActiveJob* job = Find(job_id)) job->paused = paused;
  // Not at once: the caller may have issued samples whose rows it has not committed yet, and theirs come before a
  // lease.
  ServeSoon();
}

void SamplingImpl::CancelOpen(const std::string& job_id, WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  for (const SampleKey& key : job->ledger.Open()) job->ledger.Cancel(key, batch);
  job->ledger.CancelLetGo();
  // Their workers learn it with the next heartbeat: the attempts are nobody's any more.
  job->leases.clear();
  job->slow.clear();
  job->cache.Clear();
}

void SamplingImpl::IssueStep(const std::string& job_id, int64_t step, int64_t first_prompt, int prompts,
                             WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  if (job->plan.delivers) {
    job->ledger.LetGo();
    const auto gone = [&](const auto& entry) { return job->ledger.Find(entry.first) == nullptr; };
    std::erase_if(job->failures, gone);
    std::erase_if(job->losses, gone);
  }
  for (int i = 0; i < prompts; ++i) {
    // Without training there is one step, 0, and the ordinal is the prompt's place in the job.
    const auto ordinal = static_cast<int32_t>(step == 0 ? first_prompt + i : i);
    for (int index = 0; index < job->plan.samples_per_prompt; ++index)
      job->ledger.Issue({step, ordinal, index}, first_prompt + i, batch);
  }
  job->announced[step] = false;
  ServeSoon();
}

int SamplingImpl::SamplesIssued(const std::string& job_id, int64_t step) const {
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return 0;
  return static_cast<int>(job->ledger.Step(step).size());
}

void SamplingImpl::IssueSlice(const std::string& job_id, int64_t step, int64_t first_prompt, int from, int samples,
                              WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  for (int i = from; i < from + samples; ++i) {
    const int32_t ordinal = i / job->plan.samples_per_prompt;
    const SampleKey key = {step, ordinal, i % job->plan.samples_per_prompt};
    if (job->ledger.Find(key) == nullptr) job->ledger.Issue(key, first_prompt + ordinal, batch);
  }
  job->announced[step] = false;
  ServeSoon();
}

void SamplingImpl::SetPolicy(const std::string& job_id, const v1::PolicySource& policy, WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  const bool other_lineage = policy.version().lineage() != job->plan.policy.version().lineage();
  const v1::PolicyVersion& before = job->plan.policy.version();
  if (other_lineage || policy.version().step() != before.step() || policy.version().digest() != before.digest())
    job->fan_out.Begin();
  job->plan.policy = policy;
  if (other_lineage) {
    for (const SampleKey& key : job->ledger.Open()) {
      const v1::SampleRow& row = *job->ledger.Find(key);
      if (row.state() == v1::LEASED) {
        job->leases.erase(key);
        job->slow.erase(key);
        job->ledger.Requeue(key, batch);
      } else if ((row.state() == v1::GENERATED || row.state() == v1::SCORED) &&
                 row.version().lineage() != policy.version().lineage()) {
        job->cache.Erase(key);
        job->announced[std::get<0>(key)] = false;
        job->ledger.Replace(key, v1::STALE, "generated by a lineage that was replaced", -1, batch);
      }
    }
  }
  ServeSoon();
}

bool SamplingImpl::StepScored(const std::string& job_id, int64_t step) const {
  const ActiveJob* job = Find(job_id);
  return job != nullptr && job->ledger.StepScored(step);
}

bool SamplingImpl::StepAssigned(const std::string& job_id, int64_t step) const {
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return false;
  const std::vector<const v1::SampleRow*> rows = job->ledger.Step(step);
  return !rows.empty() &&
         std::all_of(rows.begin(), rows.end(), [](const v1::SampleRow* row) { return row->state() == v1::ASSIGNED; });
}

absl::StatusOr<v1::Sample> SamplingImpl::CachedSample(ActiveJob& job, const v1::SampleRow& row) {
  const v1::Sample* cached = job.cache.Find(KeyOfSample(row.id()));
  if (cached != nullptr && (!row.has_score() || cached->has_score())) return *cached;
  return ReadSample(row);
}

absl::StatusOr<v1::Sample> SamplingImpl::TakeSample(ActiveJob& job, const v1::SampleRow& row) {
  std::optional<v1::Sample> cached = job.cache.Take(KeyOfSample(row.id()));
  if (cached.has_value() && (!row.has_score() || cached->has_score())) return *std::move(cached);
  return ReadSample(row);
}

absl::StatusOr<std::vector<v1::Sample>> SamplingImpl::AssignStep(const std::string& job_id, int64_t step, bool replay,
                                                                 WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return absl::FailedPreconditionError(absl::StrCat("job ", job_id, " generates nothing now"));
  std::vector<SampleKey> stale;
  for (const v1::SampleRow* row : job->ledger.Step(step)) {
    if (row->state() != v1::SCORED) continue;
    const bool too_old = row->version().step() < step - 1 - job->plan.max_policy_lag;
    if (too_old || row->version().lineage() != job->plan.policy.version().lineage())
      stale.push_back(KeyOfSample(row->id()));
  }
  for (const SampleKey& key : stale) {
    job->cache.Erase(key);
    job->ForgetFailures(key);
    const bool other = job->ledger.Find(key)->version().lineage() != job->plan.policy.version().lineage();
    job->ledger.Replace(key, v1::STALE,
                        other ? std::string("of a policy that was replaced")
                              : absl::StrCat("older than the lag bound ", job->plan.max_policy_lag, " at step ", step),
                        -1, batch);
  }
  if (!stale.empty()) {
    job->announced[step] = false;
    ServeSoon();
  }
  if (!job->ledger.StepScored(step))
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step, " is not complete: some of its samples are not scored"));
  const std::vector<const v1::SampleRow*> rows = job->ledger.Step(step);
  std::vector<v1::Sample> samples;
  samples.reserve(rows.size());
  std::vector<std::pair<SampleKey, absl::Status>> damaged;
  for (const v1::SampleRow* row : rows) {
    absl::StatusOr<v1::Sample> sample = TakeSample(*job, *row);
    if (sample.ok()) {
      samples.push_back(*std::move(sample));
    } else if (absl::IsDataLoss(sample.status())) {
      damaged.emplace_back(KeyOfSample(row->id()), sample.status());
    } else {
      return sample.status();
    }
  }
  // What was taken out of the cache is read from the disk next time.
  for (const auto& [key, why] : damaged) {
    if (replay || !Regenerate(*job, key, why, batch)) {
      return Annotate(why, absl::StrCat("sample ", std::get<0>(key), "/", std::get<1>(key), "/", std::get<2>(key),
                                        replay ? ", which its step is to be trained from again" : ""));
    }
  }
  if (!damaged.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step, " is not complete: ", damaged.size(), " damaged samples of it are generated anew"));
  }
  for (const v1::SampleRow* row : rows) {
    if (row->state() == v1::SCORED) job->ledger.Assign(KeyOfSample(row->id()), batch);
  }
  return samples;
}

void SamplingImpl::MarkTrained(const std::string& job_id, int64_t step, WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  for (const v1::SampleRow* row : job->ledger.Step(step)) {
    if (row->state() != v1::ASSIGNED) continue;
    const SampleKey key = KeyOfSample(row->id());
    job->ledger.Train(key, batch);
    job->cache.Erase(key);
    job->ForgetFailures(key);
  }
  job->ledger.Forget(step - kStepsKept);
  job->announced.erase(job->announced.begin(), job->announced.lower_bound(step - kStepsKept));
}

absl::Status SamplingImpl::Rollback(const std::string& job_id, int64_t step, WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return absl::OkStatus();
  // Rows beyond what memory keeps have been durable for long.
  std::vector<v1::SampleRow> settled, trained;
  RLHF_RETURN_IF_ERROR(ScanRows(job_id, step, [&](const v1::SampleRow& row, bool archived) {
    if (row.id().step() <= job->ledger.settled_through()) settled.push_back(row);
    if (!archived && row.state() == v1::TRAINED) trained.push_back(row);
  }));
  for (const v1::SampleRow& row : trained) job->ledger.Readmit(row);
  if (!settled.empty()) job->ledger.Unsettle(step, settled, batch);
  for (int64_t s = step + 1;; ++s) {
    const std::vector<const v1::SampleRow*> rows = job->ledger.Step(s);
    if (rows.empty()) return absl::OkStatus();
    for (const v1::SampleRow* row : rows) {
      if (row->state() == v1::TRAINED) job->ledger.Untrain(KeyOfSample(row->id()), batch);
    }
  }
}

void SamplingImpl::Settle(const std::string& job_id, int64_t step, WriteBatch* batch) {
  if (ActiveJob* job = Find(job_id)) job->ledger.Settle(step, batch);
}

void SamplingImpl::Close(const std::string& job_id, WriteBatch* batch) {
  const ActiveJob* job = Find(job_id);
  const auto ended = ended_.find(job_id);
  if (job == nullptr && ended == ended_.end()) return;
  v1::LedgerBase base;
  *base.mutable_counts() = job != nullptr ? job->ledger.counts() : ended->second;
  base.set_ended(true);
  batch->Put(Table::kMeta, Ledger::BaseKey(job_id), base.SerializeAsString());
}

void SamplingImpl::MarkDelivered(const std::string& job_id) {
  if (ActiveJob* job = Find(job_id)) job->ledger.DeliverScored();
}

Sampling::Rates SamplingImpl::RatesOf(const std::string& job_id) const {
  Rates rates;
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return rates;
  const absl::Duration now = loop_->clock().Now();
  // A young job's rate is of its life so far; of less than a second nothing can be said.
  const double seconds = absl::ToDoubleSeconds(std::clamp(now - job->added, absl::Seconds(1), kRateWindow));
  for (const ActiveJob::Finished& finished : job->finished) {
    if (now - finished.at > kRateWindow) continue;
    rates.samples_per_second += finished.samples / seconds;
    rates.tokens_per_second += static_cast<double>(finished.tokens) / seconds;
  }
  return rates;
}

Sampling::Held SamplingImpl::HeldOf(const std::string& job_id) const {
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return {};
  return {job->ledger.rows(), job->cache.size(), job->cache.bytes()};
}

std::string SamplingImpl::LastProblem(const std::string& job_id) const {
  const ActiveJob* job = Find(job_id);
  return job == nullptr ? "" : job->last_problem;
}

Sampling::Situation SamplingImpl::SituationOf(const std::string& job_id) const {
  Situation out;
  out.counts = Counts(job_id);
  const auto takes_work = [](const Session* session) { return !session->draining && !session->cordoned; };
  for (const Session* session : fleet_->Sessions(v1::ROLE_ROLLOUT_WORKER))
    out.rollout_workers += takes_work(session) ? 1 : 0;
  for (const Session* session : fleet_->Sessions(v1::ROLE_REWARD_SERVER))
    out.reward_servers += takes_work(session) ? 1 : 0;
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return out;
  const auto count = [&](v1::Role role, const std::map<std::string, std::string>& unsuited, int* sessions,
                         std::string* one) {
    for (const Session* session : fleet_->Sessions(role)) {
      const auto why = unsuited.find(session->session_id);
      if (why == unsuited.end() || !takes_work(session)) continue;
      ++*sessions;
      *one = why->second;
    }
  };
  count(v1::ROLE_ROLLOUT_WORKER, job->unsuited, &out.unsuited_workers, &out.unsuited_why);
  count(v1::ROLE_REWARD_SERVER, job->unsuited_scorers, &out.unsuited_reward_servers, &out.unsuited_reward_why);
  const std::vector<std::pair<SampleKey, std::string>> too_large = TooLarge(*job, /*cordoned_too=*/false);
  out.too_large_samples = static_cast<int>(too_large.size());
  if (!too_large.empty()) out.too_large_why = too_large.front().second;
  out.paused = job->paused;
  out.serving_this = job->workers();
  for (const auto& [key, lease] : job->leases) {
    const absl::Duration held_for = loop_->clock().Now() - lease.since;
    if (!lease.loading || held_for < kLongLoad) continue;
    ++out.loading;
    if (held_for <= out.loading_for) continue;
    out.loading_for = held_for;
    out.loading_by = lease.instance_id;
  }
  out.score_requests = job->score_requests;
  out.since_last = loop_->clock().Now() - job->last_finished;
  for (const auto& [id, other] : jobs_) {
    if (id != job_id && !other->leases.empty()) out.rollout_holders.push_back(id);
  }
  out.over_quota = OverQuota(*job);
  return out;
}

void SamplingImpl::Write(const std::string& job_id, WriteBatch batch) {
  if (batch.empty()) return;
  store_->Commit(std::move(batch), [this, job_id](absl::Status status) {
    loop_->Post([this, job_id, status] {
      if (status.ok()) AfterDurable(job_id);
    });
  });
}

void SamplingImpl::AfterDurable(const std::string& job_id) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  std::set<int64_t> steps, short_steps;
  for (const auto& [step, announced] : job->announced) {
    if (announced) continue;
    if (job->ledger.StepScored(step)) steps.insert(step);
    if (job->ledger.StepEndedShort(step)) short_steps.insert(step);
  }
  Dispatch(false);
  SamplingListener* const listener = job->listener;
  for (const int64_t step : short_steps) {
    if (Find(job_id) == nullptr) return;
    listener->OnStepEndedShort(job_id, step);
  }
  for (const int64_t step : steps) {
    job = Find(job_id);  // the listener may end the job
    if (job == nullptr) return;
    job->announced[step] = true;
    listener->OnStepScored(job_id, step);
  }
  ServeWaiters();
}

void SamplingImpl::Tick() {
  std::vector<std::string> ids;
  for (const auto& [id, job] : jobs_) ids.push_back(id);
  for (const std::string& id : ids) {
    if (ActiveJob* job = Find(id)) {
      ExpireLeases(*job);
      FailTooLarge(*job);
    }
  }
  Dispatch(true);
  const absl::Duration now = callers_.Now();
  ServeWaiters();
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const absl::StatusOr<const Session*> session = fleet_->Find(it->request.session_id());
    if (session.ok() && now < it->deadline) {
      ++it;
      continue;
    }
    Done<v1::LeasePromptsResponse> done = std::move(it->done);
    it = waiters_.erase(it);
    if (session.ok()) {
      done(v1::LeasePromptsResponse());
    } else {
      done(session.status());
    }
  }
}

}  // namespace rlhf::coordinator
