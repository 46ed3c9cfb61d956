// Which policy's samples a step is trained from, which score is whose, and what reward servers are asked.
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "coordinator/ledger.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/fleet_member.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

// Scores a sample by its ordinal. `changes` makes another answer of it.
class RecordedRewards final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    v1::ScoreResponse response;
    for (const v1::Sample& sample : request.samples()) {
      v1::SampleScore* score = response.add_scores();
      *score->mutable_id() = sample.id();
      score->mutable_score()->set_total(sample.id().ordinal());
      for (int i = 0; i < sample.response_tokens_size(); ++i) score->mutable_score()->add_reference_log_probs(-2);
    }
    last = std::move(request);
    if (changes) changes(&response);
    done(std::move(response));
  }
  v1::ScoreRequest last;
  std::function<void(v1::ScoreResponse*)> changes;
};

class SamplingVersionsTest : public testing::Test, public SamplingListener {
 protected:
  SamplingVersionsTest() {
    plan_.job_id = "job";
    plan_.prompts = std::make_shared<std::vector<v1::Prompt>>(4);
    plan_.policy.set_job_id("job");
    plan_.policy.set_artifact("sha256:policy");
    plan_.score = true;
    plan_.reference_policy = "sha256:reference";
    plan_.max_attempts = 3;
    Start();
  }
  void OnStepScored(const std::string&, int64_t) override {}
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override { failed_.push_back(row.reason()); }

  void Start() {
    sampling_.reset();
    payloads_.reset();
    fleet_ = MakeFleet(&loop_, absl::Hours(1), absl::Hours(3));
    payloads_ = *OpenPayloadStore(dir_.File("payloads"));
    sampling_ = MakeSampling(&loop_, &store_, payloads_.get(), fleet_.get(), &rewards_);
    worker_ = RegisterMember(fleet_.get(), &loop_, v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    RegisterMember(fleet_.get(), &loop_, v1::ROLE_REWARD_SERVER, "reward-0");
  }
  // As after SIGKILL: only what the store holds is left.
  void Restart() {
    loop_.Run();
    ASSERT_TRUE(payloads_->Sync().ok());
    Start();
  }
  void AddJob(int64_t lineage, int64_t step) {
    plan_.policy.mutable_version()->set_lineage(lineage);
    plan_.policy.mutable_version()->set_step(step);
    ASSERT_TRUE(sampling_->AddJob(plan_, this).ok());
    loop_.Run();
  }
  void Commit(const std::function<void(WriteBatch*)>& fn) {
    WriteBatch batch;
    fn(&batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    loop_.Run();
  }
  void Issue(int64_t step) {
    Commit([&](WriteBatch* batch) { sampling_->IssueStep("job", step, (step - 1) * 4, 4, batch); });
  }
  void SetPolicy(int64_t lineage, int64_t step) {
    plan_.policy.mutable_version()->set_lineage(lineage);
    plan_.policy.mutable_version()->set_step(step);
    Commit([&](WriteBatch* batch) { sampling_->SetPolicy("job", plan_.policy, batch); });
  }
  std::vector<v1::PromptLease> Lease() { return LeaseNow(sampling_.get(), &loop_, worker_, 64); }
  // By the policy that each lease names, of one step or of all; then they are scored.
  void Generate(const std::vector<v1::PromptLease>& leases, int64_t only_step = 0) {
    v1::SubmitSamplesRequest request;
    request.set_session_id(worker_);
    for (const v1::PromptLease& lease : leases) {
      if (only_step != 0 && lease.step() != only_step) continue;
      for (const v1::SampleLease& sample : lease.samples()) {
        v1::Sample* out = request.add_samples();
        *out = AnswerOf(lease, sample);
        out->add_response_tokens(7);
        out->add_behaviour_log_probs(-1);
      }
    }
    sampling_->SubmitSamples(request, [](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      for (const v1::SampleVerdict& verdict : response->verdicts()) EXPECT_TRUE(verdict.accepted());
    });
    loop_.Run();
    Tick();
  }
  void Tick() {
    sampling_->Tick();
    loop_.Run();
  }
  absl::StatusOr<std::vector<v1::Sample>> Assign(int64_t step) {
    absl::StatusOr<std::vector<v1::Sample>> samples = absl::UnknownError("not asked");
    Commit([&](WriteBatch* batch) { samples = sampling_->AssignStep("job", step, /*replay=*/false, batch); });
    return samples;
  }
  v1::LedgerCounts Counts() const { return sampling_->Counts("job"); }
  // Why the samples that were superseded were.
  std::vector<std::string> StaleReasons() {
    std::vector<std::string> reasons;
    EXPECT_TRUE(store_
                    .Scan(Table::kSamples, "job/",
                          [&](absl::string_view, absl::string_view value) {
                            v1::SampleRow row;
                            row.ParseFromArray(value.data(), static_cast<int>(value.size()));
                            if (row.state() == v1::STALE) reasons.push_back(row.reason());
                            return true;
                          })
                    .ok());
    return reasons;
  }

  ScratchDir dir_;
  FakeClock clock_;
  ManualLoop loop_{&clock_};
  EdgeMemoryStore store_;
  RecordedRewards rewards_;
  SamplingPlan plan_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<Sampling> sampling_;
  std::string worker_;
  std::vector<std::string> failed_;
};

TEST_F(SamplingVersionsTest, SamplesOlderThanTheLagBoundAreNotTrainedFrom) {
  plan_.max_policy_lag = 1;
  AddJob(0, 0);
  Issue(1);
  Issue(2);
  Issue(3);
  const std::vector<v1::PromptLease> leases = Lease();
  ASSERT_EQ(leases.size(), 8u) << "of two steps";
  Generate(leases, 2);
  EXPECT_TRUE(Assign(2).ok()) << "one version behind is what the bound allows";

  SetPolicy(0, 1);
  const std::vector<v1::PromptLease> third = Lease();
  ASSERT_EQ(third.size(), 4u);
  std::vector<v1::PromptLease> old = third;
  for (v1::PromptLease& lease : old) lease.mutable_policy()->mutable_version()->set_step(0);
  Generate(old);  // begun before the version was there
  const auto assigned = Assign(3);
  EXPECT_TRUE(absl::IsFailedPrecondition(assigned.status())) << assigned.status();
  EXPECT_EQ(Counts().stale(), 4);
  EXPECT_EQ(Counts().queued(), 4);
  EXPECT_THAT(StaleReasons(), testing::Each(HasSubstr("older than the lag bound 1 at step 3")));
  Generate(Lease());
  const auto again = Assign(3);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->size(), 4u);
  for (const v1::Sample& sample : *again) EXPECT_EQ(sample.version_low().step(), 1);
}

TEST_F(SamplingVersionsTest, WhatALineageMadeThatWasReplacedIsMadeAnew) {
  plan_.max_policy_lag = 1;
  AddJob(0, 0);
  Issue(1);
  Issue(2);
  const std::vector<v1::PromptLease> leases = Lease();
  ASSERT_EQ(leases.size(), 8u);
  Generate(leases, 2);
  ASSERT_EQ(Counts().scored(), 4);
  ASSERT_EQ(Counts().leased(), 4);
  SetPolicy(1, 0);
  EXPECT_EQ(Counts().stale(), 4);
  EXPECT_THAT(StaleReasons(), testing::Each(HasSubstr("by a lineage that was replaced")));
  EXPECT_EQ(Counts().leased(), 0);
  EXPECT_EQ(Counts().queued(), 8);
  Generate(Lease());
  for (const int64_t step : {1, 2}) {
    const auto assigned = Assign(step);
    ASSERT_TRUE(assigned.ok()) << assigned.status();
    for (const v1::Sample& sample : *assigned) EXPECT_EQ(sample.version_low().lineage(), 1u);
  }
}

// As after a restored backup, whose jobs begin a new lineage.
TEST_F(SamplingVersionsTest, ScoredRowsOfAnotherLineageAreNotAssignedAfterARestart) {
  AddJob(0, 0);
  Issue(1);
  Generate(Lease());
  ASSERT_EQ(Counts().scored(), 4);
  Restart();
  AddJob(1, 0);
  const auto assigned = Assign(1);
  EXPECT_TRUE(absl::IsFailedPrecondition(assigned.status())) << assigned.status();
  EXPECT_EQ(Counts().stale(), 4);
  EXPECT_EQ(Counts().queued(), 4);
  EXPECT_THAT(StaleReasons(), testing::Each(HasSubstr("of a policy that was replaced")));
  Generate(Lease());
  EXPECT_TRUE(Assign(1).ok());
}

TEST_F(SamplingVersionsTest, AScoreThatNamesAnotherSampleIsNobodys) {
  rewards_.changes = [](v1::ScoreResponse* response) {
    std::swap(*response->mutable_scores(2)->mutable_id(), *response->mutable_scores(3)->mutable_id());
  };
  AddJob(0, 0);
  Issue(1);
  Generate(Lease());
  EXPECT_EQ(Counts().scored(), 2) << "those that are where they belong";
  EXPECT_EQ(Counts().generated(), 2);
  EXPECT_THAT(sampling_->LastProblem("job"), HasSubstr("sample job 1/2/0 where job 1/3/0 was asked for"));
  // No better than none: the order is not enough.
  rewards_.changes = [](v1::ScoreResponse* response) {
    for (v1::SampleScore& score : *response->mutable_scores()) score.clear_id();
  };
  clock_.Advance(absl::Seconds(5));
  Tick();
  EXPECT_EQ(Counts().scored(), 2);
  rewards_.changes = nullptr;
  clock_.Advance(absl::Seconds(5));
  Tick();
  const auto assigned = Assign(1);
  ASSERT_TRUE(assigned.ok()) << assigned.status();
  ASSERT_EQ(assigned->size(), 4u);
  for (const v1::Sample& sample : *assigned) EXPECT_EQ(sample.score().total(), sample.id().ordinal());
  EXPECT_THAT(failed_, testing::IsEmpty());
}

TEST_F(SamplingVersionsTest, RewardServersAreAskedForWhatTheJobPlanned) {
  plan_.sampling.set_temperature(0.7);
  plan_.policy.set_deterministic(true);
  plan_.scorer.add_components()->set_name("judge");
  plan_.gold.add_components()->set_name("truth");
  AddJob(0, 0);
  Issue(1);
  Generate(Lease());
  const v1::ScoreRequest& asked = rewards_.last;
  ASSERT_EQ(asked.samples_size(), 4);
  EXPECT_EQ(asked.job_id(), "job");
  EXPECT_EQ(asked.temperature(), plan_.sampling.temperature()) << "the reference's log-probabilities depend on it";
  EXPECT_TRUE(asked.deterministic());
  EXPECT_EQ(asked.tokenizer(), "sha256:policy");
  EXPECT_EQ(asked.reference_policy(), "sha256:reference");
  ASSERT_EQ(asked.scorer().components_size(), 1);
  EXPECT_EQ(asked.scorer().components(0).name(), "judge");
  ASSERT_EQ(asked.gold().components_size(), 1);
  EXPECT_EQ(asked.gold().components(0).name(), "truth");
}

}  // namespace
}  // namespace rlhf::coordinator
