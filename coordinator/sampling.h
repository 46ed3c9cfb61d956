// Generating and scoring for jobs: the ledger, leases to rollout workers, dispatch to reward servers. Loop thread only.
//
// Every state change of a sample is added to a WriteBatch and acknowledged after it is durable. Ledger rows of a job
// are restored by AddJob.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/event_loop.h"
#include "coordinator/fleet.h"
#include "coordinator/page_limit.h"
#include "coordinator/store/payload_store.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/reward_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

class Quotas;

// What a job that generates says once.
struct SamplingPlan {
  std::string job_id;
  std::string project, submitter;  // whose share it is
  int priority = 0;
  uint64_t seed = 0;
  uint32_t stream = 0;                                     // noise stream: stage and round
  std::shared_ptr<const std::vector<v1::Prompt>> prompts;  // in the job's seeded order; prompt_index wraps around
  int samples_per_prompt = 1;
  v1::SamplingParams sampling;  // complete
  v1::PolicySource policy;      // initial, or newest committed
  bool score = false;           // false: `generated` passes to `scored` with an empty score
  // Nothing is trained: all samples are of step 0, and end as delivered or cancelled. Those that are scored are not
  // kept in memory when more are issued, and of their payloads no more than kDeliveringCacheBytes.
  bool delivers = false;
  v1::ScorerSpec scorer, gold;   // references resolved to digests
  std::string reference_policy;  // digest, or empty
  int max_policy_lag = 0;
  int max_attempts = 5;
};

inline constexpr size_t kDeliveringCacheBytes = 64 << 20;

class SamplingListener {
 public:
  virtual ~SamplingListener() = default;
  // Every sample of the step is scored. Also called after AddJob for restored steps that are complete.
  //
  // By memory: the rows of the newest scores may be on their way to the disk still. Nothing is lost or repeated by that
  // as long as a listener lets nothing out before a commit of its own, which the store makes durable after those rows
  // or fails with them; after a crash in between the samples are scored again, and nobody has seen the first scores.
  // What it reads from rows (List) must wait for such a commit too.
  virtual void OnStepScored(const std::string& job_id, int64_t step) = 0;
  // A sample spent its attempts or failed for good.
  virtual void OnSampleFailed(const std::string& job_id, const v1::SampleRow& row) = 0;
  // Everything of the step is scored, but for samples that failed for good (see FailedOf). Also called after AddJob for
  // restored steps, and again and again until ReplacePrompt or the job's end.
  virtual void OnStepEndedShort(const std::string& job_id, int64_t step) {}
};

// How scores are asked for; the real one speaks gRPC to a reward server's address. Replies on any thread.
class RewardClient {
 public:
  virtual ~RewardClient() = default;
  // Unsuited (common/unsuited.h): that server cannot score the job as it was started.
  virtual void Score(const std::string& address, v1::ScoreRequest request, absl::Duration timeout,
                     absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) = 0;
};

class Sampling : public FleetListener {
 public:
  // --- for jobs
  virtual absl::Status AddJob(SamplingPlan plan, SamplingListener* listener) = 0;
  virtual void RemoveJob(const std::string& job_id) = 0;               // forgets it in memory; rows stay
  virtual void SetPaused(const std::string& job_id, bool paused) = 0;  // leases nothing new
  // Cancels every open sample (rows into the batch) and revokes its leases.
  virtual void CancelOpen(const std::string& job_id, WriteBatch* batch) = 0;
  // The same of a job that was never added here, from its rows; nothing of any other. `delivers`: as its SamplingPlan.
  virtual void CancelStored(const std::string& job_id, bool delivers, WriteBatch* batch) = 0;
  // Issues prompts × samples_per_prompt for a step: prompt indices first_prompt, first_prompt + 1, … In step 0 (jobs
  // without training) the ordinal is the prompt index, and several calls add to it.
  virtual void IssueStep(const std::string& job_id, int64_t step, int64_t first_prompt, int prompts,
                         WriteBatch* batch) = 0;
  // A slice of a step ≥ 1 of more samples than one turn of the loop should issue: `samples` of them from the `from`-th
  // on, prompt by prompt, where first_prompt is the step's first. Those that exist are left as they are. Until the last
  // slice the step looks smaller than it is: its end is the caller's to know.
  virtual void IssueSlice(const std::string& job_id, int64_t step, int64_t first_prompt, int from, int samples,
                          WriteBatch* batch) = 0;
  // How many samples of a step are issued, by slices, restarts included.
  virtual int SamplesIssued(const std::string& job_id, int64_t step) const = 0;
  // Newest committed version: leases from now on name it. Unassigned samples of another lineage become
  // stale and are issued anew; those beyond the lag when they would be assigned.
  virtual void SetPolicy(const std::string& job_id, const v1::PolicySource& policy, WriteBatch* batch) = 0;
  virtual bool StepScored(const std::string& job_id, int64_t step) const = 0;
  // The step's batch was handed out: every sample of it is assigned.
  virtual bool StepAssigned(const std::string& job_id, int64_t step) const = 0;
  // The step's samples in issue order, with scores; marks them assigned (idempotent). FailedPrecondition while not all
  // are scored. A sample whose payload is damaged on the disk fails, and a new one is generated in its place
  // (FailedPrecondition). `replay`: the step was trained from these very samples; DataLoss when one is damaged, as when
  // new ones are damaged again and again. The batch is to be committed in each case.
  virtual absl::StatusOr<std::vector<v1::Sample>> AssignStep(const std::string& job_id, int64_t step, bool replay,
                                                             WriteBatch* batch) = 0;
  virtual void MarkTrained(const std::string& job_id, int64_t step, WriteBatch* batch) = 0;
  // Trained steps after `step` become assigned again, to be replayed.
  virtual absl::Status Rollback(const std::string& job_id, int64_t step, WriteBatch* batch) = 0;
  // No rollback goes behind `step` any more: what a restart reads grows only with the steps after it.
  virtual void Settle(const std::string& job_id, int64_t step, WriteBatch* batch) = 0;
  // The job is over: its counts are final and need not be recounted from rows.
  virtual void Close(const std::string& job_id, WriteBatch* batch) = 0;
  // The step was refused: its samples fail with the reason and as many new ones are issued for it from first_prompt on.
  virtual void RefuseStep(const std::string& job_id, int64_t step, const std::string& reason, int64_t first_prompt,
                          WriteBatch* batch) = 0;
  // A step's samples that failed for good, in issue order.
  virtual std::vector<v1::SampleRow> FailedOf(const std::string& job_id, int64_t step) const = 0;
  // All samples of a prompt of a step that ended short are failed, those that were scored with the reason, and as many
  // new ones of another prompt are issued in their place.
  virtual void ReplacePrompt(const std::string& job_id, int64_t step, int32_t ordinal, const std::string& reason,
                             int64_t prompt_index, WriteBatch* batch) = 0;
  // Every scored sample of a job that delivers, which ends with this. No row is written: Close says it of all at once.
  virtual void MarkDelivered(const std::string& job_id) = 0;
  virtual v1::LedgerCounts Counts(const std::string& job_id) const = 0;  // also of jobs not added: recounted from rows
  // What a check found. notes: which counts could not be compared, and why; they are no violations.
  struct Findings {
    std::vector<std::string> violations, notes;
  };
  // Recounts the job's rows and reads their payloads on `thread`; what it finds comes on the loop. What happens
  // meanwhile goes on: the counts of the moment of the call are compared for every step that did not change until the
  // rows were read. `gone` is asked from `thread` again and again: once true, the check ends, Cancelled. Unavailable:
  // the store failed.
  virtual void Check(const std::string& job_id, Background* thread, std::function<bool()> gone,
                     absl::AnyInvocable<void(absl::StatusOr<Findings>)> done) = 0;
  // Progress for people: samples and tokens generated a second in the last minute.
  struct Rates {
    double samples_per_second = 0, tokens_per_second = 0;
  };
  virtual Rates RatesOf(const std::string& job_id) const = 0;
  // What of the job's samples is in memory.
  struct Held {
    size_t rows = 0;
    size_t samples = 0, sample_bytes = 0;  // with their texts and tokens
  };
  virtual Held HeldOf(const std::string& job_id) const = 0;
  // The newest failure of a worker or reward server at this job's samples, for people; empty when all is well.
  virtual std::string LastProblem(const std::string& job_id) const = 0;
  // For `rlhfctl why`.
  struct Situation {
    v1::LedgerCounts counts;
    bool paused = false;
    int rollout_workers = 0, reward_servers = 0;  // that take work
    int unsuited_workers = 0;                     // of the rollout workers, those that cannot serve this job
    std::string unsuited_why;                     // one of them, with its precision and how to start it instead
    int unsuited_reward_servers = 0;              // likewise
    std::string unsuited_reward_why;
    int too_large_samples = 0;   // queued ones that no rollout worker has the room for
    std::string too_large_why;   // of one of them
    int serving_this = 0;        // rollout workers with leases of this job
    int loading = 0;             // samples leased to workers that have long fetched or loaded what they need
    std::string loading_by;      // one of those
    absl::Duration loading_for;  // the longest of them
    std::vector<std::string> rollout_holders;  // other jobs that have rollout workers
    bool over_quota = false;                   // of rollout workers
    int score_requests = 0;
    absl::Duration since_last;  // since a sample of it finished, or since it was added
  };
  virtual Situation SituationOf(const std::string& job_id) const = 0;
  // Reads rows and payloads for listings: those after a key, a page of them. next_key: what to go on after, empty at
  // the end. Any thread: only what the store holds.
  virtual absl::StatusOr<std::vector<v1::SampleView>> List(const std::string& job_id, int64_t step_or_minus_one,
                                                           const std::string& after_key, PageLimit page,
                                                           std::string* next_key) const = 0;
  // --- for rollout workers
  // Long poll. `gone`: whether nobody waits for the answer any more; then nothing is leased.
  virtual void LeasePrompts(const v1::LeasePromptsRequest& request, Done<v1::LeasePromptsResponse> done,
                            std::function<bool()> gone = nullptr) = 0;
  virtual void SubmitSamples(const v1::SubmitSamplesRequest& request, Done<v1::SubmitSamplesResponse> done) = 0;
  virtual void ReturnLeases(const v1::ReturnLeasesRequest& request, Done<v1::ReturnLeasesResponse> done) = 0;
  virtual void Tick() = 0;  // lease expiry, dispatch; called every 100 ms
  // Leases that ran out because their worker went silent or made no progress, since the start.
  virtual int64_t leases_expired() const = 0;
};

struct SamplingOptions {
  absl::Duration lease = absl::Seconds(9);          // a lease that no heartbeat names
  absl::Duration no_progress = absl::Seconds(60);   // a lease without progress
  absl::Duration longest_load = absl::Minutes(10);  // from a lease on, while its worker says that it loads the model
  absl::Duration score_timeout = absl::Seconds(60);
  int score_batch_samples = 64;      // a ScoreRequest holds at most
  int score_requests_in_flight = 2;  // per reward server
  int weights_fan_out = 2;           // rollout workers that one process sends a version to; 0: the learner sends to all
  const Quotas* quotas = nullptr;    // bounds and weights of shares; null: none
  // By which workers give up waiting for leases: it goes on while the loop's stands still. Null: the loop's.
  const Clock* callers_clock = nullptr;
};
std::unique_ptr<Sampling> MakeSampling(EventLoop* loop, StateStore* store, PayloadStore* payloads, Fleet* fleet,
                                       RewardClient* reward, const SamplingOptions& options = {});

}  // namespace rlhf::coordinator
