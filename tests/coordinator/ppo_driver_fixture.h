// A PPO job over the job table, sampling and a store in memory; the loop's turns, the background's work, and what the
// store still writes before it "crashes" are the test's.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/sample_id.h"
#include "common/process.h"
#include "common/status_util.h"
#include "coordinator/jobs.h"
#include "coordinator/jobs/monitor.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/ledger.h"
#include "coordinator/store/keys.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/coordinator/stored_jobs.h"

namespace rlhf::coordinator {

inline constexpr int kPromptsPerStep = 600;  // more than two turns issue

inline int64_t SampleRowsIn(const WriteBatch& batch) {
  int64_t rows = 0;
  for (const WriteBatch::Op& op : batch.ops) rows += op.table == Table::kSamples ? 1 : 0;
  return rows;
}

// Rows that outlive the process, which may end before any of its writes.
class CrashingStore final : public StoreOverRows {
 public:
  using StoreOverRows::StoreOverRows;
  // The first batch that would bring the sample rows written from now on over `rows` is lost, with all later ones.
  void CrashAfterSampleRows(int64_t rows) { left_ = rows; }
  bool crashed() const { return crashed_; }

  void Enqueue(WriteBatch batch, Committed done) override {
    const int64_t samples = SampleRowsIn(batch);
    crashed_ = crashed_ || samples > left_;
    if (crashed_) return;
    left_ -= samples;
    if (!holding_) return rows_->Commit(std::move(batch), std::move(done));
    rows_->Commit(std::move(batch),
                  [this, &done](absl::Status status) { held_.emplace_back(std::move(done), status); });
  }
  // Writes are kept, but nobody is told until Release.
  void Hold(bool holding) { holding_ = holding; }
  void Release() {
    for (auto& [done, status] : std::exchange(held_, {})) done(status);
  }

 private:
  int64_t left_ = std::numeric_limits<int64_t>::max();
  bool crashed_ = false, holding_ = false;
  std::vector<std::pair<Committed, absl::Status>> held_;
};

// Scores by ordinal, at once; a sample that it `refuses` fails for good.
class OrdinalRewards final : public RewardClient {
 public:
  std::function<bool(const v1::Sample&)> refuses;
  void Score(const std::string&, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    v1::ScoreResponse response;
    for (const v1::Sample& sample : request.samples()) {
      v1::SampleScore& scored = *response.add_scores();
      *scored.mutable_id() = sample.id();
      if (refuses && refuses(sample)) {
        scored.set_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
        scored.set_error("too long");
        continue;
      }
      v1::Score* score = scored.mutable_score();
      score->set_total(sample.id().ordinal() % 3);
      for (int i = 0; i < sample.response_tokens_size(); ++i) score->add_reference_log_probs(-1);
    }
    done(std::move(response));
  }
};

struct PpoSurroundings {
  CrashingStore store;
  QueuedBackground batches;
  OrdinalRewards rewards;
};
// What a PPO job needs, as one process has it; Recover goes on with its job.
struct PpoProcess : PpoSurroundings, JobsProcess {
  PpoProcess(EdgeMemoryStore* rows, FakeClock* clock, const std::string& dir)
      : PpoSurroundings{.store = CrashingStore(rows)}, JobsProcess(&store, clock, dir, &rewards, &batches) {
    EXPECT_TRUE(oversight->Recover().ok());
    EXPECT_TRUE(artifacts->Recover().ok());
  }
};

using StepBatch = std::shared_ptr<const std::vector<v1::Sample>>;

class PpoDriverTest : public StoredJobsTest {
 protected:
  // A process begins, with a worker and a reward server, and serves; no job goes on before Recover.
  void Begin() {
    process_ = std::make_unique<PpoProcess>(&rows_, &clock_, dir_.path());
    worker_ = process_->Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    process_->Register(v1::ROLE_REWARD_SERVER, "reward-0");
  }
  void Recover() {
    ASSERT_TRUE(process_->jobs->Recover().ok());
    process_->loop.Run();
  }
  // As after SIGKILL: only what the store holds is left.
  void Restart() {
    process_.reset();
    Begin();
    Recover();
  }

  // A job's row with its prompts' artifact, as a submission leaves them.
  void PutJob(const std::function<void(v1::PpoSpec*)>& change = [](v1::PpoSpec*) {}) {
    std::string lines;
    for (int i = 0; i < kPromptsPerStep; ++i) absl::StrAppend(&lines, "{\"prompt\":\"prompt ", i, "\"}\n");
    const std::string digest = process_->PublishPrompts(lines);
    v1::Job job;
    job.set_id("job");
    job.set_state(v1::RUNNING);
    job.set_submitted_by("test");
    job.mutable_started_at()->set_seconds(1'700'000'000);
    job.mutable_spec()->set_name("job");
    v1::PpoSpec* ppo = job.mutable_spec()->mutable_ppo();
    ppo->set_policy("base");
    ppo->set_prompts("prompts");
    ppo->set_steps(3);
    ppo->set_max_policy_lag(0);
    ppo->set_prompts_per_step(kPromptsPerStep);
    v1::RewardComponent* component = ppo->mutable_scorer()->add_components();
    component->set_name("r");
    component->mutable_reward_model()->set_model("rm");
    change(ppo);
    ASSERT_EQ(JoinProblems(CompleteSpec(job.mutable_spec())), "");
    (*job.mutable_resolved())["prompts"] = digest;
    Store(std::move(job));
  }
  // The step's rows in the store, without those that were superseded: ordinal to prompt index.
  std::map<int, int64_t> PromptsOf(int64_t step) {
    std::map<int, int64_t> prompts;
    EXPECT_TRUE(rows_
                    .Scan(Table::kSamples, "job/",
                          [&](absl::string_view key, absl::string_view value) {
                            v1::SampleRow row;
                            EXPECT_TRUE(row.ParseFromArray(value.data(), static_cast<int>(value.size())));
                            if (key != Ledger::RowKey("job", KeyOfSample(row.id()))) return true;
                            if (row.id().step() == step) prompts[row.id().ordinal()] = row.prompt_index();
                            return true;
                          })
                    .ok());
    return prompts;
  }
  void ExpectIssued(int64_t step) {
    const std::map<int, int64_t> prompts = PromptsOf(step);
    EXPECT_EQ(prompts.size(), static_cast<size_t>(kPromptsPerStep));
    for (const auto& [ordinal, prompt] : prompts) EXPECT_EQ(prompt, (step - 1) * kPromptsPerStep + ordinal);
    EXPECT_EQ(JobRow().issued_through_step(), step);
    EXPECT_EQ(JobRow().prompt_cursor(), step * kPromptsPerStep);
  }

  // The worker generates what it can lease, and it is scored; how many samples that were. Samples of prompts that it
  // `refuses` can never be generated; one prompt after the other says so, from the last one to the first. What it
  // `keeps` it goes on with.
  using Prompts = std::function<bool(const v1::PromptLease&)>;
  int Work(const Prompts& refuses = nullptr, const Prompts& keeps = nullptr) {
    v1::SubmitSamplesRequest results;
    results.set_session_id(worker_);
    std::vector<v1::ReturnedLease> refused;
    for (const v1::PromptLease& lease : process_->Lease(worker_, 10'000)) {
      for (const v1::SampleLease& sample : lease.samples()) {
        if (keeps && keeps(lease)) continue;
        if (refuses && refuses(lease)) {
          v1::ReturnedLease& failed = refused.emplace_back();
          *failed.mutable_id() = artifact::SampleIdOf(lease, sample.index());
          failed.set_attempt(sample.attempt());
          failed.set_error("too long");
          failed.set_permanent(true);
          continue;
        }
        v1::Sample* out = results.add_samples();
        *out = AnswerOf(lease, sample);
        if (cut_) out->set_finish_reason(v1::MAX_TOKENS);
        for (int i = 0; i < 8; ++i) out->add_response_tokens(lease.ordinal() % 2 == 0 ? 7 : i);
        for (int i = 0; i < 8; ++i) out->add_behaviour_log_probs(-1);
      }
    }
    process_->sampling->SubmitSamples(results, [&](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      for (const v1::SampleVerdict& verdict : response->verdicts()) EXPECT_TRUE(verdict.accepted());
    });
    process_->loop.Run();
    for (auto failed = refused.rbegin(); failed != refused.rend(); ++failed) {
      v1::ReturnLeasesRequest returned;
      returned.set_session_id(worker_);
      *returned.add_leases() = *failed;
      process_->sampling->ReturnLeases(returned, [](absl::StatusOr<v1::ReturnLeasesResponse>) {});
      process_->loop.Run();
    }
    process_->sampling->Tick();
    process_->loop.Run();
    return results.samples_size();
  }
  void AskForBatch(int64_t step) {
    v1::NextBatchRequest request;
    request.set_job_id("job");
    request.set_step(step);
    batch_.reset();
    process_->jobs->NextBatch(request, [this](absl::StatusOr<StepBatch> batch) { batch_ = std::move(batch); });
    process_->loop.Run();
  }
  void CommitStep(int64_t step, bool stop = false) {
    v1::CommitStepRequest request;
    request.set_job_id("job");
    request.set_step(step);
    request.set_stop(stop);
    request.set_weights_digest(absl::StrCat("weights ", step));
    request.set_weights_address("nowhere:2");
    (*request.mutable_metrics()->mutable_values())["kl"] = 0.25;
    committed_.reset();
    process_->jobs->CommitStep(
        request, [this](absl::StatusOr<v1::CommitStepResponse> response) { committed_ = std::move(response); });
    process_->loop.Run();
  }
  void Halt(bool halted) {
    bool done = false;
    const auto check = [&done](absl::StatusOr<v1::ServiceState> state) { done = state.ok(); };
    if (halted) {
      process_->oversight->Halt("olga", "look", check);
    } else {
      process_->oversight->Resume("olga", "seen", check);
    }
    process_->loop.Run();
    ASSERT_TRUE(done);
  }
  void Measure() {
    process_->batches.RunAll();
    process_->loop.Run();
  }
  void ExpectAllAccountedFor() {
    const Sampling::Findings findings = process_->Check();
    EXPECT_THAT(findings.violations, testing::IsEmpty());
    EXPECT_THAT(findings.notes, testing::IsEmpty());
  }
  // What the monitor remembers of a step is what its batch says.
  void ExpectObserved(int64_t step, const std::vector<v1::Sample>& batch) {
    const auto row = rows_.Get(Table::kMeta, KeyOf(MonitorStepPrefix("job"), {static_cast<uint64_t>(step)}));
    ASSERT_TRUE(row.ok()) << row.status();
    v1::MonitorStep seen;
    ASSERT_TRUE(seen.ParseFromString(*row));
    const v1::MonitorStep expected = ObserveStep(step, batch, 0.25, 4, 64);
    EXPECT_EQ(seen.step(), expected.step());
    EXPECT_EQ(std::map(seen.values().begin(), seen.values().end()),
              std::map(expected.values().begin(), expected.values().end()));
    EXPECT_EQ(seen.gold_size(), expected.gold_size());
  }

  std::unique_ptr<PpoProcess> process_;
  std::string worker_;
  bool cut_ = false;  // the worker's answers end before max_new_tokens, without an end
  std::optional<absl::StatusOr<StepBatch>> batch_;
  std::optional<absl::StatusOr<v1::CommitStepResponse>> committed_;
};

}  // namespace rlhf::coordinator
