// What rollout workers bring back: which results count, and what becomes of a sample that has none.
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "artifact/sample_digest.h"
#include "common/canonical_bytes.h"
#include "common/log.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

// A worker that is lost says little about its samples: so many losses count as one failed attempt.
constexpr int kLossesAnAttempt = 10;
constexpr size_t kResultsRemembered = 64;  // of how long they took

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
  if (!sample.log_kept_mass().empty() && sample.log_kept_mass_size() != sample.response_tokens_size()) {
    return absl::StrCat("expected a kept mass for none or each of ", sample.response_tokens_size(),
                        " response tokens, found ", sample.log_kept_mass_size());
  }
  for (const float log_mass : sample.log_kept_mass()) {
    if (!std::isfinite(log_mass)) return "the log of a kept mass is not finite";
  }
  return "";
}

// Aborted: fenced, or of a job that is over, and to be discarded.
void Refuse(v1::ErrorReason reason, absl::StatusCode code, v1::SampleVerdict* verdict) {
  verdict->set_reason(reason);
  verdict->set_code(static_cast<int>(code));
}

}  // namespace

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
  const std::optional<v1::SampleRow> let_go = row == nullptr ? LetGoRow(job, key) : std::nullopt;
  if (let_go.has_value()) row = &*let_go;
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
  if (job.plan.score || !job.plan.delivers) job.cache.Put(key, std::move(stored));
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
    const bool too_small = lease.unsuited() && lease.permanent();  // for this prompt; FailTooLarge sees to the rest
    if (too_small) {
      if (job->room.Refuse(request.session_id(), job->PromptOf(key), absl::StrCat(worker, ": ", lease.error()),
                           lease.needs_cache_bytes()))
        spdlog::warn("job {}: {} has not the room for a prompt and is passed over for it: {}", lease.id().job_id(),
                     worker, lease.error());
    } else if (lease.unsuited()) {
      if (job->unsuited.try_emplace(request.session_id(), absl::StrCat(worker, ": ", lease.error())).second)
        spdlog::warn("job {}: {} cannot serve it and gets none of it: {}", lease.id().job_id(), worker, lease.error());
      job->fan_out.Leave(request.session_id());
    } else if (!lease.error().empty()) {
      spdlog::warn("job {}: generating failed at {}: {}", lease.id().job_id(), worker, lease.error());
    }
    if (!lease.error().empty()) job->last_problem = absl::StrCat(worker, ": ", lease.error());
    EndAttempt(*job, key, lease.attempt(), lease.unavailable() || lease.unsuited() ? "" : lease.error(),
               lease.permanent() && !too_small ? Ending::kPermanent : Ending::kFailed, &batch);
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

}  // namespace rlhf::coordinator
