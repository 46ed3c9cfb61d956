// Inside of Sampling: what it knows of each active job. Shared by sampling.cc (jobs' side), sampling_leases.cc and
// sampling_results.cc (rollout workers), sampling_replacements.cc (samples that take others' places),
// sampling_scores.cc (reward servers), sampling_rows.cc (what is read from its records), sampling_check.cc (their
// check).
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/lease_table.h"
#include "coordinator/ledger.h"
#include "coordinator/loop_clock.h"
#include "coordinator/quotas.h"
#include "coordinator/sample_cache.h"
#include "coordinator/sampling.h"
#include "coordinator/scheduling/fair_share.h"
#include "coordinator/scheduling/prompt_room.h"
#include "coordinator/scheduling/weight_fan_out.h"

namespace rlhf::coordinator {

constexpr absl::Duration kRateWindow = absl::Seconds(60);  // of RatesOf; steps of half a minute have a rate, too

struct ActiveJob {
  ActiveJob(SamplingPlan p, SamplingListener* l, int fan_out_degree)
      : plan(std::move(p)),
        listener(l),
        ledger(plan.job_id, [this](const SampleKey& key) { OnQueued(key); }),
        fan_out(fan_out_degree),
        cache(plan.delivers ? kDeliveringCacheBytes : SampleCache::kUnbounded) {}
  ActiveJob(const ActiveJob&) = delete;  // its ledger knows it

  SamplingPlan plan;
  SamplingListener* listener;
  Ledger ledger;
  WeightFanOut fan_out;  // of plan.policy's version
  bool paused = false;
  // Sessions that cannot serve it as they were started, and why.
  std::map<std::string, std::string> unsuited;          // rollout workers'
  std::map<std::string, std::string> unsuited_scorers;  // reward servers'
  bool Suits(const std::string& session_id) const { return unsuited.count(session_id) == 0; }
  PromptRoom room;  // of rollout workers' sessions, by the prompts' places among the plan's
  size_t PromptOf(const SampleKey& key) const {
    return static_cast<size_t>(ledger.Find(key)->prompt_index()) % plan.prompts->size();
  }
  bool HasRoom(const std::string& session_id, const SampleKey& key) const {
    return !room.AnyRefused() || room.Fits(session_id, PromptOf(key));
  }
  void OnQueued(const SampleKey& key) {
    if (room.AnyRefused()) room.Queued(key, PromptOf(key));
  }
  LeaseTable leases;  // exactly the leased ones, each at the newest attempt that is alive
  LeaseTable slow;    // a lease that is hedged: its older attempt, which may still win
  int workers() const { return static_cast<int>(leases.workers() + slow.WorkersBeside(leases)); }
  bool Holds(const std::string& session_id) const {
    return leases.HeldBy(session_id) > 0 || slow.HeldBy(session_id) > 0;
  }
  std::deque<absl::Duration> took;            // from lease to result, of the newest ones
  std::map<SampleKey, int> failures, losses;  // since the coordinator's start
  void ForgetFailures(const SampleKey& key) {
    failures.erase(key);
    losses.erase(key);
  }
  std::set<SampleKey> scoring;                      // at a reward server now
  int score_requests = 0;                           // that hold them
  Patience worker_patience, scorer_patience;        // with which it competes for them
  std::map<SampleKey, absl::Duration> score_after;  // backing off after a failed scoring
  std::map<SampleKey, int> score_tries;             // in vain, while what scoring needs was away
  int score_batch_halvings = 0;                     // after requests that took too long; see OnScoreTime
  int score_batches_in_time = 0;                    // full ones, since the size changed
  int score_batches_to_grow = 16;                   // that many of them double it
  bool score_batch_grown = false;                   // the size's newest change was to double
  std::string last_problem;                         // for people; empty when the newest result was good
  SampleCache cache;                                // generated, and not yet handed out or, where it delivers, scored
  std::map<int64_t, bool> announced;                // steps whose completion the listener knows
  struct Finished {
    absl::Duration at;
    int samples;
    int64_t tokens;
  };
  std::deque<Finished> finished;  // of the last kRateWindow
  absl::Duration added = absl::ZeroDuration(), last_finished = absl::ZeroDuration();
};

class SamplingImpl final : public Sampling {
 public:
  SamplingImpl(EventLoop* loop, StateStore* store, PayloadStore* payloads, Fleet* fleet, RewardClient* reward,
               const SamplingOptions& options);

  absl::Status AddJob(SamplingPlan plan, SamplingListener* listener) override;
  void RemoveJob(const std::string& job_id) override;
  void SetPaused(const std::string& job_id, bool paused) override;
  void CancelOpen(const std::string& job_id, WriteBatch* batch) override;
  void CancelStored(const std::string& job_id, bool delivers, WriteBatch* batch) override;
  void IssueStep(const std::string& job_id, int64_t step, int64_t first_prompt, int prompts,
                 WriteBatch* batch) override;
  void IssueSlice(const std::string& job_id, int64_t step, int64_t first_prompt, int from, int samples,
                  WriteBatch* batch) override;
  int SamplesIssued(const std::string& job_id, int64_t step) const override;
  void SetPolicy(const std::string& job_id, const v1::PolicySource& policy, WriteBatch* batch) override;
  bool StepScored(const std::string& job_id, int64_t step) const override;
  bool StepAssigned(const std::string& job_id, int64_t step) const override;
  absl::StatusOr<std::vector<v1::Sample>> AssignStep(const std::string& job_id, int64_t step, bool replay,
                                                     WriteBatch* batch) override;
  void MarkTrained(const std::string& job_id, int64_t step, WriteBatch* batch) override;
  absl::Status Rollback(const std::string& job_id, int64_t step, WriteBatch* batch) override;
  void Settle(const std::string& job_id, int64_t step, WriteBatch* batch) override;
  void Close(const std::string& job_id, WriteBatch* batch) override;
  void RefuseStep(const std::string& job_id, int64_t step, const std::string& reason, int64_t first_prompt,
                  WriteBatch* batch) override;
  std::vector<v1::SampleRow> FailedOf(const std::string& job_id, int64_t step) const override;
  void ReplacePrompt(const std::string& job_id, int64_t step, int32_t ordinal, const std::string& reason,
                     int64_t prompt_index, WriteBatch* batch) override;
  void MarkDelivered(const std::string& job_id) override;
  v1::LedgerCounts Counts(const std::string& job_id) const override;
  void Check(const std::string& job_id, Background* thread, std::function<bool()> gone,
             absl::AnyInvocable<void(absl::StatusOr<Findings>)> done) override;
  Rates RatesOf(const std::string& job_id) const override;
  Held HeldOf(const std::string& job_id) const override;
  std::string LastProblem(const std::string& job_id) const override;
  Situation SituationOf(const std::string& job_id) const override;
  absl::StatusOr<std::vector<v1::SampleView>> List(const std::string& job_id, int64_t step_or_minus_one,
                                                   const std::string& after_key, PageLimit page,
                                                   std::string* next_key) const override;

  void LeasePrompts(const v1::LeasePromptsRequest& request, Done<v1::LeasePromptsResponse> done,
                    std::function<bool()> gone) override;
  void SubmitSamples(const v1::SubmitSamplesRequest& request, Done<v1::SubmitSamplesResponse> done) override;
  void ReturnLeases(const v1::ReturnLeasesRequest& request, Done<v1::ReturnLeasesResponse> done) override;
  void Tick() override;
  int64_t leases_expired() const override { return leases_expired_; }

  void OnHeartbeat(const Session& session, const v1::HeartbeatRequest& request,
                   v1::HeartbeatResponse* response) override;
  void OnLost(const Session& session) override;

 private:
  struct Waiter {
    v1::LeasePromptsRequest request;
    Done<v1::LeasePromptsResponse> done;
    absl::Duration deadline;     // by callers_
    std::function<bool()> gone;  // null: never
  };
  struct Sent {
    SampleKey key;
    int32_t attempt;
    v1::SampleTimes times;  // sent, reward_server
  };

  ActiveJob* Find(const std::string& job_id) const;
  absl::StatusOr<v1::LedgerBase> BaseOf(const std::string& job_id) const;
  // Rows of steps after the base's, in issue order; archived ones too.
  absl::Status ScanRows(const std::string& job_id, int64_t after_step,
                        absl::FunctionRef<void(const v1::SampleRow&, bool archived)> fn) const;
  absl::StatusOr<v1::Sample> ReadSample(const v1::SampleRow& row) const;  // any thread
  // The row of a sample that was let go, from the store; none when it is not there.
  std::optional<v1::SampleRow> LetGoRow(const ActiveJob& job, const SampleKey& key) const;
  using CountsByStep = std::map<int64_t, v1::LedgerCounts>;
  // What is wrong with the job's rows and their payloads by themselves, their counts, and how many have no payload any
  // more. Any thread; Cancelled once `gone` says so.
  absl::StatusOr<std::vector<std::string>> CheckRows(const std::string& job_id, const std::function<bool()>& gone,
                                                     CountsByStep* recounted, int64_t* freed) const;
  // What the ledger said at the snapshot against the rows read since. False: not comparable, the job began or ended.
  bool Compare(const std::string& job_id, const std::optional<Ledger::Snapshot>& snapshot, CountsByStep recounted,
               Findings* findings) const;
  absl::StatusOr<v1::Sample> CachedSample(ActiveJob& job, const v1::SampleRow& row);
  // Out of the cache: a batch is handed out once, and again only to a group that formed anew.
  absl::StatusOr<v1::Sample> TakeSample(ActiveJob& job, const v1::SampleRow& row);
  // Commits and, once durable, announces steps that are complete by now (see SamplingListener) and serves workers that
  // wait.
  void Write(const std::string& job_id, WriteBatch batch);
  void AfterDurable(const std::string& job_id);
  // Answers what was asked once it is durable; the jobs go on.
  void CommitThenServe(WriteBatch batch, const std::set<std::string>& touched,
                       absl::AnyInvocable<void(absl::Status)> done);

  // Leases.
  ActiveJob* PickJob(const Session& session);
  bool TryLease(const Session& session, int max_samples, v1::LeasePromptsResponse* response, WriteBatch* batch);
  // A second attempt, at an idle worker, of what another takes much longer for than is usual.
  bool TryHedge(const Session& session, int max_samples, v1::LeasePromptsResponse* response, WriteBatch* batch);
  bool HedgeDue() const;  // there may be something that is slow
  // How long a lease takes that is slow; nothing while nobody can tell.
  std::optional<absl::Duration> UsualTwice(const ActiveJob& job) const;
  // Its project or submitter has all the rollout workers that it may have.
  bool OverQuota(const ActiveJob& job) const;
  void AddLease(ActiveJob& job, const SampleKey& key, const Session& session, bool hedge,
                v1::LeasePromptsResponse* response, WriteBatch* batch);
  // The job's policy, with the processes that this worker is to get its weights from.
  v1::PolicySource PolicyFor(ActiveJob& job, const Session& session);
  // Where an instance's lease of a sample at an attempt is, null when it does not hold it (any more).
  static LeaseTable* TableOf(ActiveJob& job, const SampleKey& key, int32_t attempt, const std::string& instance_id);
  // One attempt ends without a result; the sample is released unless another attempt of it goes on.
  enum class Ending { kFailed, kPermanent, kLost };
  void EndAttempt(ActiveJob& job, const SampleKey& key, int32_t attempt, const std::string& error, Ending ending,
                  WriteBatch* batch);
  void ServeWaiters();
  void ServeSoon();  // once, after what is on the loop now
  bool AnyQueued() const;
  // Something could be leased, and this worker cannot serve it: what it gets says nothing about what others would.
  bool PassedOver(const std::string& session_id) const;
  // Has samples that may be leased now: later steps wait for their policy, since what an older one made would be stale.
  static bool Leasable(const ActiveJob& job);
  // Of a job that is leasable: this worker can generate some of it.
  static bool Serves(ActiveJob& job, const std::string& session_id);
  // The first ones of those that it can.
  static std::vector<SampleKey> LeasableBy(ActiveJob& job, const std::string& session_id, size_t most);
  // Queued samples whose prompts no rollout worker has the room for, and what one said. cordoned_too: not one that
  // takes no work now either.
  std::vector<std::pair<SampleKey, std::string>> TooLarge(const ActiveJob& job, bool cordoned_too) const;
  // They fail, unless one that may have had the room may be back any moment.
  void FailTooLarge(ActiveJob& job);
  size_t HeldBy(const std::string& session_id) const;  // samples leased to it
  int AvailableWorkers();
  int SuitedWorkers(const ActiveJob& job);  // of those; at least 1
  void Release(ActiveJob& job, const SampleKey& key, const std::string& error, Ending ending, WriteBatch* batch);
  void ExpireLeases(ActiveJob& job);
  v1::SampleVerdict Take(ActiveJob& job, const v1::Sample& sample, const std::string& worker, WriteBatch* batch);

  // Scores.
  // Sends what is ready, job by job in fair shares, while reward servers have room. Unless `now`, small batches of a
  // job that expects more wait for company.
  void Dispatch(bool now);
  bool SendBatch(ActiveJob& job);  // false when nothing could be sent
  size_t FullBatch(const ActiveJob& job) const;
  const Session* PickRewardServer(const ActiveJob* job);  // null: for any job
  // The size of the job's requests follows what its scorers can do in time: halved by a request that took too long,
  // doubled by enough full ones that did not; by twice as many each time that doubling was too much.
  void OnScoreTime(ActiveJob& job, size_t sent, bool in_time);
  // The sample's payload is damaged: it fails, and is generated anew. False: too often, nothing was done.
  bool Regenerate(ActiveJob& job, const SampleKey& key, const absl::Status& why, WriteBatch* batch);
  // A sample could not be scored: later again, or for good.
  void FailScoring(ActiveJob& job, const SampleKey& key, const absl::Status& why, WriteBatch* batch);
  // The reward server cannot score the job as it was started: others do, and the samples lose nothing by it.
  void PassOverScorer(ActiveJob& job, const std::string& session_id, const absl::Status& why);
  void OnScores(const std::string& job_id, const std::string& session_id, const std::vector<Sent>& sent,
                const absl::StatusOr<v1::ScoreResponse>& response);
  absl::Status TakeScore(ActiveJob& job, const Sent& sent, const v1::SampleScore& score, WriteBatch* batch);

  int64_t leases_expired_ = 0;
  EventLoop* const loop_;
  StateStore* const store_;
  PayloadStore* const payloads_;
  Fleet* const fleet_;
  RewardClient* const reward_;
  const SamplingOptions options_;
  std::map<std::string, std::unique_ptr<ActiveJob>> jobs_;
  std::map<std::string, v1::LedgerCounts> ended_;  // counts of jobs that were removed
  std::list<Waiter> waiters_;
  std::map<std::string, std::string> last_job_;  // by rollout worker's session
  struct RewardServer {
    int in_flight = 0;             // requests that it computes itself
    std::set<std::string> asking;  // jobs of which it has one for which it asks their own services
    absl::Duration not_before;
    uint64_t completed = 0;  // requests, as its heartbeats say
    absl::Duration moved;    // when that changed last, or it was first heard of
    // A request took too long, and nothing was completed meanwhile: its volume or device hangs. Until something is,
    // others are asked where there are any.
    bool stuck = false;
  };
  void OnScorerHeartbeat(const Session& session, uint64_t completed);
  static bool Asks(const ActiveJob& job);
  std::map<std::string, RewardServer> reward_servers_;  // by session
  std::set<std::string> stuck_;         // workers' sessions that report and get nowhere: nothing new until they do
  absl::Duration rollout_worker_lost_;  // when one was, or this coordinator began
  CallersTime callers_;                 // rollout workers'
  bool serve_posted_ = false;
  absl::Duration hedge_looked_at_ = -absl::InfiniteDuration();  // and found nothing that is slow
  int available_workers_ = 0;
  absl::Duration available_at_;
};

}  // namespace rlhf::coordinator
