// Reward servers: batches of generated samples out, scores in. A failure is a typed status, never a number.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/asks_service.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kScoreBackoff = absl::Milliseconds(500);
constexpr absl::Duration kLongestBackoff = absl::Seconds(30);
// A server that is behind completes something in this time; one whose request took too long meanwhile hangs.
constexpr absl::Duration kStandsStillAfter = absl::Seconds(30);
constexpr int kMostBatchesToGrow = 1024;
constexpr size_t kRequestBytes = 16 << 20;  // of samples in one request; a channel carries 64 MiB

// Trying again cannot help: the model, the pattern or the sample itself is at fault.
bool Permanent(absl::StatusCode code) {
  return code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kNotFound ||
         code == absl::StatusCode::kFailedPrecondition || code == absl::StatusCode::kUnimplemented ||
         code == absl::StatusCode::kDataLoss;
}

// What a scorer needs is away for now (its own dependency too): waiting helps, and the sample is not at fault.
bool Transient(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded ||
         code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kAborted ||
         code == absl::StatusCode::kCancelled;
}

std::string ProblemOf(const v1::Score& score, const v1::Sample& sample, bool reference) {
  if (!std::isfinite(score.total())) return "the score is not finite";
  // Parts of a component too, and what is only measured: all of it goes into JSON lines, which have no such number.
  if (!std::isfinite(score.gold_total())) return "the gold score is not finite";
  for (const auto* components : {&score.components(), &score.gold()}) {
    for (const v1::ComponentScore& component : *components) {
      if (!std::isfinite(component.value()))
        return absl::StrCat("the value of component \"", component.name(), "\" is not finite");
    }
  }
  if (reference && score.reference_log_probs_size() != sample.response_tokens_size()) {
    return absl::StrCat("expected ", sample.response_tokens_size(), " reference log-probabilities, found ",
                        score.reference_log_probs_size());
  }
  for (const float log_prob : score.reference_log_probs()) {
    if (!std::isfinite(log_prob)) return "a reference log-probability is not finite";
  }
  return "";
}

}  // namespace

bool SamplingImpl::Asks(const ActiveJob& job) {
  return AsksService(job.plan.scorer) || AsksService(job.plan.gold);
}

const Session* SamplingImpl::PickRewardServer(const ActiveJob* job) {
  const Session* best = nullptr;
  const bool asks = job != nullptr && Asks(*job);
  int least = asks ? kMostServicesAsked : options_.score_requests_in_flight;
  const absl::Duration now = loop_->clock().Now();
  const RewardServer idle;
  std::vector<std::pair<const Session*, const RewardServer*>> suited;
  bool any_moves = false;
  for (const Session* session : fleet_->Sessions(v1::ROLE_REWARD_SERVER)) {
    if (session->draining || session->cordoned || session->identity.address().empty()) continue;
    if (job != nullptr && job->unsuited_scorers.count(session->session_id) > 0) continue;
    const auto it = reward_servers_.find(session->session_id);
    suited.emplace_back(session, it == reward_servers_.end() ? &idle : &it->second);
    any_moves = any_moves || !suited.back().second->stuck;
  }
  for (const auto& [session, known] : suited) {
    const RewardServer& server = *known;
    if (now < server.not_before || (server.stuck && any_moves)) continue;
    const int asking = static_cast<int>(server.asking.size());
    if (job == nullptr && asking < kMostServicesAsked) return session;
    const int in_flight = asks ? asking : server.in_flight;
    if (in_flight >= least || (asks && server.asking.count(job->plan.job_id) > 0)) continue;
    least = in_flight;
    best = session;
  }
  return best;
}

void SamplingImpl::OnScorerHeartbeat(const Session& session, uint64_t completed) {
  const auto [it, is_new] = reward_servers_.try_emplace(session.session_id);
  RewardServer& server = it->second;
  if (!is_new && server.completed == completed) return;
  server.completed = completed;
  server.moved = loop_->clock().Now();
  server.stuck = false;
}

void SamplingImpl::Dispatch(bool now) {
  std::set<const ActiveJob*> idle;  // jobs that have nothing to send after all
  while (true) {
    std::vector<Claim> claims;
    std::vector<ActiveJob*> jobs;
    bool any = false;
    for (const auto& [id, job] : jobs_) {
      const size_t ready =
          job->ledger.generated().size() - std::min(job->ledger.generated().size(), job->scoring.size());
      const bool more_to_come = !job->ledger.queued().empty() || !job->ledger.leased().empty();
      const bool wants = job->plan.score && idle.count(job.get()) == 0 && ready > 0 &&
                         (now || !more_to_come || ready >= FullBatch(*job));
      const int points = job->scorer_patience.Points(loop_->clock().Now(), wants);
      if (!wants && job->score_requests == 0) continue;
      any = any || wants;
      claims.push_back(
          {job->plan.priority + points, job->plan.project, job->plan.submitter, job->score_requests, wants});
      jobs.push_back(job.get());
    }
    // In this order: to pick is to look at the whole fleet, and most times there is nothing to send.
    if (!any || PickRewardServer(nullptr) == nullptr) return;
    const int picked = PickClaim(claims, QuotaRule{options_.quotas, &v1::Quota::max_score_requests}, -1);
    if (picked < 0) return;
    ActiveJob* const job = jobs[static_cast<size_t>(picked)];
    if (SendBatch(*job)) {
      job->scorer_patience.Granted(loop_->clock().Now());
    } else {
      idle.insert(job);
    }
  }
}

size_t SamplingImpl::FullBatch(const ActiveJob& job) const {
  return static_cast<size_t>(std::max(1, options_.score_batch_samples >> job.score_batch_halvings));
}

bool SamplingImpl::SendBatch(ActiveJob& job) {
  const absl::Duration time = loop_->clock().Now();
  const Session* server = PickRewardServer(&job);
  if (server == nullptr) return false;
  v1::ScoreRequest request;
  request.set_job_id(job.plan.job_id);
  *request.mutable_scorer() = job.plan.scorer;
  *request.mutable_gold() = job.plan.gold;
  request.set_reference_policy(job.plan.reference_policy);
  request.set_tokenizer(job.plan.policy.artifact());
  request.set_temperature(job.plan.sampling.temperature());
  request.set_deterministic(job.plan.policy.deterministic());
  v1::SampleTimes times;
  times.set_sent(absl::ToUnixMicros(loop_->clock().WallNow()));
  times.set_reward_server(server->identity.instance_id());
  std::vector<Sent> sent;
  std::vector<std::pair<SampleKey, absl::Status>> unreadable;
  size_t bytes = 0;
  for (const SampleKey& key : job.ledger.generated()) {
    if (sent.size() == FullBatch(job)) break;
    if (job.scoring.count(key) > 0) continue;
    if (const auto it = job.score_after.find(key); it != job.score_after.end() && time < it->second) continue;
    const v1::SampleRow& row = *job.ledger.Find(key);
    absl::StatusOr<v1::Sample> sample = CachedSample(job, row);
    if (!sample.ok()) {
      unreadable.emplace_back(key, sample.status());
      continue;
    }
    bytes += sample->ByteSizeLong();
    if (bytes > kRequestBytes && !sent.empty()) break;
    *request.add_samples() = *std::move(sample);
    sent.push_back({key, row.attempt(), times});
  }
  WriteBatch batch;
  for (const auto& [key, why] : unreadable) {
    if (!absl::IsDataLoss(why) || !Regenerate(job, key, why, &batch)) FailScoring(job, key, why, &batch);
  }
  Write(job.plan.job_id, std::move(batch));
  if (sent.empty()) return false;
  for (const Sent& one : sent) job.scoring.insert(one.key);
  ++job.score_requests;
  if (RewardServer& at = reward_servers_[server->session_id]; Asks(job)) {
    at.asking.insert(job.plan.job_id);
  } else {
    ++at.in_flight;
  }
  reward_->Score(server->identity.address(), std::move(request), options_.score_timeout,
                 [this, job_id = job.plan.job_id, session_id = server->session_id,
                  sent](absl::StatusOr<v1::ScoreResponse> response) {
                   loop_->Post([this, job_id, session_id, sent, response = std::move(response)] {
                     OnScores(job_id, session_id, sent, response);
                   });
                 });
  return true;
}

void SamplingImpl::OnScoreTime(ActiveJob& job, size_t sent, bool in_time) {
  if (in_time) {
    if (job.score_batch_halvings == 0 || sent < FullBatch(job)) return;
    if (++job.score_batches_in_time < job.score_batches_to_grow) return;
    --job.score_batch_halvings;
    job.score_batches_in_time = 0;
    job.score_batch_grown = true;
    return;
  }
  // Others of the same size, which were on their way, say nothing new.
  if (FullBatch(job) == 1 || 2 * FullBatch(job) <= sent) return;
  while (FullBatch(job) > 1 && 2 * FullBatch(job) > sent) ++job.score_batch_halvings;
  if (std::exchange(job.score_batch_grown, false))
    job.score_batches_to_grow = std::min(2 * job.score_batches_to_grow, kMostBatchesToGrow);
  job.score_batches_in_time = 0;
}

void SamplingImpl::FailScoring(ActiveJob& job, const SampleKey& key, const absl::Status& why, WriteBatch* batch) {
  job.last_problem = absl::StrCat("scoring: ", why.message());
  const bool spent = !Transient(why.code()) && ++job.failures[key] >= job.plan.max_attempts;
  if (!spent && !Permanent(why.code())) {
    const int tries = std::min(job.score_tries[key]++, 10);
    job.score_after[key] = loop_->clock().Now() + std::min(kScoreBackoff * (1 << tries), kLongestBackoff);
    return;
  }
  job.ledger.Fail(key, job.last_problem, batch);
  loop_->Post([this, job_id = job.plan.job_id, row = *job.ledger.Find(key)] {
    if (const ActiveJob* active = Find(job_id)) active->listener->OnSampleFailed(job_id, row);
  });
}

void SamplingImpl::PassOverScorer(ActiveJob& job, const std::string& session_id, const absl::Status& why) {
  job.last_problem = absl::StrCat("scoring: ", why.message());
  const absl::StatusOr<const Session*> session = fleet_->Find(session_id);
  if (!session.ok()) return;  // started anew, it may be another
  const std::string& server = (*session)->identity.instance_id();
  if (job.unsuited_scorers.try_emplace(session_id, absl::StrCat(server, ": ", why.message())).second)
    spdlog::warn("job {}: {} cannot score it and gets none of it: {}", job.plan.job_id, server,
                 std::string(why.message()));
}

void SamplingImpl::OnScores(const std::string& job_id, const std::string& session_id, const std::vector<Sent>& sent,
                            const absl::StatusOr<v1::ScoreResponse>& response) {
  const absl::Duration now = loop_->clock().Now();
  if (const auto it = reward_servers_.find(session_id); it != reward_servers_.end()) {
    const bool asked = it->second.asking.erase(job_id) > 0;
    if (!asked) --it->second.in_flight;
    // A user's own service that takes long says nothing of the server.
    const bool slow = asked && absl::IsDeadlineExceeded(response.status());
    if (!response.ok() && !IsUnsuited(response.status()) && !slow) it->second.not_before = now + kScoreBackoff;
    if (!asked && absl::IsDeadlineExceeded(response.status()) && now - it->second.moved >= kStandsStillAfter &&
        !std::exchange(it->second.stuck, true)) {
      spdlog::warn(
          "{} completed nothing while a request took too long: other reward servers are asked, where there are any",
          sent.front().times.reward_server());
    }
  }
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return Dispatch(false);
  --job->score_requests;
  for (const Sent& one : sent) job->scoring.erase(one.key);
  WriteBatch batch;
  const auto held = [job](const Sent& one) {
    const v1::SampleRow* row = job->ledger.Find(one.key);
    return row != nullptr && row->state() == v1::GENERATED && row->attempt() == one.attempt;
  };
  if (IsUnsuited(response.status())) {
    const LogScope scope({.job_id = job_id});
    PassOverScorer(*job, session_id, response.status());
  } else if (!response.ok()) {
    const LogScope scope({.job_id = job_id});
    spdlog::warn("job {}: scoring failed: {}", job_id, response.status().ToString());
    if (absl::IsDeadlineExceeded(response.status())) OnScoreTime(*job, sent.size(), /*in_time=*/false);
    for (const Sent& one : sent) {
      if (held(one)) FailScoring(*job, one.key, response.status(), &batch);
    }
  } else if (response->scores_size() != static_cast<int>(sent.size())) {
    const absl::Status broken = absl::InternalError(
        absl::StrCat("a reward server answered ", response->scores_size(), " of ", sent.size(), " samples"));
    for (const Sent& one : sent) {
      if (held(one)) FailScoring(*job, one.key, broken, &batch);
    }
  } else {
    OnScoreTime(*job, sent.size(), /*in_time=*/true);
    for (size_t i = 0; i < sent.size(); ++i) {
      const absl::Status status = TakeScore(*job, sent[i], response->scores(static_cast<int>(i)), &batch);
      if (!status.ok()) FailScoring(*job, sent[i].key, status, &batch);
    }
  }
  Write(job_id, std::move(batch));
  Dispatch(false);
}

absl::Status SamplingImpl::TakeScore(ActiveJob& job, const Sent& sent, const v1::SampleScore& score,
                                     WriteBatch* batch) {
  const v1::SampleRow* row = job.ledger.Find(sent.key);
  // The first stored score wins; one of an older attempt is nobody's.
  if (row == nullptr || row->state() != v1::GENERATED || row->attempt() != sent.attempt) return absl::OkStatus();
  // Scores come in the samples' order. One that names another sample is of nobody here, whatever its place.
  if (score.id().job_id() != job.plan.job_id || KeyOfSample(score.id()) != sent.key) {
    return absl::InternalError(absl::StrCat("a reward server answered with sample ", score.id().job_id(), " ",
                                            score.id().step(), "/", score.id().ordinal(), "/", score.id().index(),
                                            " where ", job.plan.job_id, " ", std::get<0>(sent.key), "/",
                                            std::get<1>(sent.key), "/", std::get<2>(sent.key), " was asked for"));
  }
  if (score.code() != 0) return absl::Status(static_cast<absl::StatusCode>(score.code()), score.error());
  absl::StatusOr<v1::Sample> stored = TakeSample(job, *row);
  if (!stored.ok()) {
    // Damaged since it was sent: as before a dispatch, a new one is generated.
    return absl::IsDataLoss(stored.status()) && Regenerate(job, sent.key, stored.status(), batch) ? absl::OkStatus()
                                                                                                  : stored.status();
  }
  v1::Sample& sample = *stored;
  if (const std::string problem = ProblemOf(score.score(), sample, !job.plan.reference_policy.empty());
      !problem.empty()) {
    return absl::InternalError(problem);
  }
  const v1::PayloadRef ref = payloads_->Append(score.score().SerializeAsString());
  v1::SampleTimes times = sent.times;
  times.set_scored(absl::ToUnixMicros(loop_->clock().WallNow()));
  job.ledger.Scored(sent.key, ref, batch, times);
  *sample.mutable_score() = score.score();
  if (!job.plan.delivers) job.cache.Put(sent.key, std::move(sample));  // else it is read when it is delivered
  job.score_after.erase(sent.key);
  job.score_tries.erase(sent.key);
  job.last_problem.clear();
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
