// Sampling by itself: a store in memory, a clock that stands still, a reward server of this test. What a job hears
// after a restart, what a scorer's failures cost, and who may lease what.
#include <deque>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "common/process.h"
#include "common/unsuited.h"
#include "coordinator/ledger.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Listener final : public SamplingListener {
 public:
  void OnStepScored(const std::string&, int64_t step) override { scored.push_back(step); }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override { failed.push_back(row.reason()); }
  std::vector<int64_t> scored;
  std::vector<std::string> failed;
};

// Answers each request by `answer`; nothing while it is unset.
class ScriptedRewards final : public RewardClient {
 public:
  using Answer = std::function<absl::StatusOr<v1::ScoreResponse>(const v1::ScoreRequest&)>;
  void Score(const std::string& address, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    sizes.push_back(request.samples_size());
    asked.push_back(address);
    if (unsuited.count(address) > 0) return done(UnsuitedError("start this server with --precision float32"));
    if (answer) done(answer(request));
  }
  Answer answer;
  std::set<std::string> unsuited;  // addresses
  std::vector<std::string> asked;
  std::vector<int> sizes;
};

absl::StatusOr<v1::ScoreResponse> Ones(const v1::ScoreRequest& request) {
  v1::ScoreResponse response;
  for (const v1::Sample& sample : request.samples()) {
    v1::SampleScore* score = response.add_scores();
    *score->mutable_id() = sample.id();
    score->mutable_score()->set_total(1);
  }
  return response;
}
absl::StatusOr<v1::ScoreResponse> EachFailsWith(const v1::ScoreRequest& request, absl::StatusCode code) {
  v1::ScoreResponse response;
  for (int i = 0; i < request.samples_size(); ++i) {
    v1::SampleScore* score = response.add_scores();
    *score->mutable_id() = request.samples(i).id();
    score->set_code(static_cast<int>(code));
    score->set_error("the scorer said so");
  }
  return response;
}

class SamplingTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override { loop_->Stop(); }

  void Start() {
    loop_ = EventLoop::StartThread(&clock_);
    auto payloads = OpenPayloadStore(dir_.File("payloads"));
    ASSERT_TRUE(payloads.ok()) << payloads.status();
    payloads_ = *std::move(payloads);
    fleet_ = MakeFleet(loop_.get(), absl::Hours(1), absl::Hours(3));
    sampling_ = MakeSampling(loop_.get(), &store_, payloads_.get(), fleet_.get(), &rewards_);
    worker_ = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    Register(v1::ROLE_REWARD_SERVER, "reward-0");
  }
  // As after SIGKILL: only what the store holds is left.
  void Restart() {
    loop_->Stop();
    sampling_.reset();
    fleet_.reset();
    payloads_.reset();
    listener_ = Listener();
    Start();
  }

  // On the loop's thread, waiting for it; then waits for what that posted.
  void OnLoop(const std::function<void()>& fn) {
    for (const std::function<void()>& each : {fn, std::function<void()>([] {}), std::function<void()>([] {})}) {
      absl::Notification done;
      loop_->Post([&] {
        each();
        done.Notify();
      });
      done.WaitForNotification();
    }
  }
  std::string Register(v1::Role role, const std::string& instance, const std::string& address = "nowhere:1") {
    v1::RegisterRequest request;
    request.set_role(role);
    request.set_instance_id(instance);
    request.set_address(address);
    request.set_protocol_version(kProtocolVersion);
    request.set_slots(64);
    std::string session;
    OnLoop([&] {
      fleet_->Register(request, [&](auto response) {
        ASSERT_TRUE(response.ok()) << response.status();
        session = response->session_id();
      });
    });
    return session;
  }

  void AddJob(int64_t policy_step, int max_attempts = 3, const std::string& id = "job", int priority = 0) {
    SamplingPlan plan;
    plan.job_id = id;
    plan.priority = priority;
    auto prompts = std::make_shared<std::vector<v1::Prompt>>(4);
    for (v1::Prompt& prompt : *prompts) prompt.set_text("say something");
    plan.prompts = prompts;
    plan.policy.set_job_id(id);
    plan.policy.mutable_version()->set_step(policy_step);
    plan.score = true;
    plan.max_attempts = max_attempts;
    OnLoop([&] { ASSERT_TRUE(sampling_->AddJob(std::move(plan), &listener_).ok()); });
  }
  void Issue(int64_t step, const std::string& id = "job") {
    OnLoop([&] {
      WriteBatch batch;
      sampling_->IssueStep(id, step, (step - 1) * 4, 4, &batch);
      store_.Commit(std::move(batch), [](absl::Status) {});
    });
  }
  v1::LeasePromptsResponse Lease(int most = 64) {
    v1::LeasePromptsRequest request;
    request.set_session_id(worker_);
    request.set_max_samples(most);
    v1::LeasePromptsResponse out;
    OnLoop([&] {
      sampling_->LeasePrompts(request, [&](auto response) {
        if (response.ok()) out = *std::move(response);
      });
    });
    OnLoop([&] { sampling_->Tick(); });  // ends the poll when there is nothing
    return out;
  }
  void Generate(const v1::LeasePromptsResponse& work, const std::string& text = "") {
    v1::SubmitSamplesRequest request;
    request.set_session_id(worker_);
    for (const v1::PromptLease& lease : work.leases()) {
      for (const v1::SampleLease& sample : lease.samples()) {
        v1::Sample* out = request.add_samples();
        out->mutable_id()->set_job_id(lease.job_id());
        out->mutable_id()->set_step(lease.step());
        out->mutable_id()->set_ordinal(lease.ordinal());
        out->mutable_id()->set_index(sample.index());
        out->set_attempt(sample.attempt());
        out->set_response_text(text);
        out->add_response_tokens(7);
        out->add_behaviour_log_probs(-1);
        *out->mutable_version_low() = lease.policy().version();
      }
    }
    OnLoop([&] { sampling_->SubmitSamples(request, [](auto response) { ASSERT_TRUE(response.ok()); }); });
    Tick();
  }
  void Tick() {
    for (int i = 0; i < 3; ++i) OnLoop([&] { sampling_->Tick(); });
  }
  v1::LedgerCounts Counts() {
    v1::LedgerCounts counts;
    OnLoop([&] { counts = sampling_->Counts("job"); });
    return counts;
  }

  ScratchDir dir_;
  FakeClock clock_;
  EdgeMemoryStore store_;
  ScriptedRewards rewards_;
  Listener listener_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<Sampling> sampling_;
  std::string worker_;
};

TEST_F(SamplingTest, AStepThatWasOpenBeforeARestartIsAnnouncedWhenItIsScored) {
  AddJob(0);
  Issue(1);
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 4);
  Restart();
  rewards_.answer = Ones;
  AddJob(0);
  EXPECT_THAT(listener_.scored, IsEmpty());
  Generate(work);  // the leases outlived the restart
  EXPECT_THAT(listener_.scored, ElementsAre(1));
}

TEST_F(SamplingTest, ALeaseOfBeforeARestartIsStillItsWorkersAlone) {
  AddJob(0);
  Issue(1);
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 4);
  Restart();
  AddJob(0);
  const std::string holder = std::exchange(worker_, Register(v1::ROLE_ROLLOUT_WORKER, "rollout-1"));
  v1::HeartbeatRequest heartbeat;
  for (const v1::PromptLease& lease : work.leases()) {
    v1::LeaseProgress* progress = heartbeat.add_progress();
    progress->mutable_id()->set_job_id("job");
    progress->mutable_id()->set_step(lease.step());
    progress->mutable_id()->set_ordinal(lease.ordinal());
    progress->set_attempt(lease.samples(0).attempt());
  }
  const auto revoked = [&](const std::string& session) {
    int count = -1;
    heartbeat.set_session_id(session);
    OnLoop([&] { fleet_->Heartbeat(heartbeat, [&](auto response) { count = response->revoked_size(); }); });
    return count;
  };
  EXPECT_EQ(revoked(worker_), 4);
  Generate(work);
  EXPECT_EQ(Counts().leased(), 4);
  EXPECT_EQ(revoked(holder), 0);
  worker_ = holder;
  Generate(work);
  EXPECT_EQ(Counts().generated(), 4);
}

TEST_F(SamplingTest, AStepThatWasScoredBeforeARestartIsAnnouncedAgain) {
  rewards_.answer = Ones;
  AddJob(0);
  Issue(1);
  Generate(Lease());
  ASSERT_THAT(listener_.scored, ElementsAre(1));
  Restart();
  AddJob(0);
  Tick();
  EXPECT_THAT(listener_.scored, ElementsAre(1));
}

TEST_F(SamplingTest, RatesAreOfTheLastMinuteOrOfAYoungJobsLife) {
  const auto samples_per_second = [&] {
    double rate = -1;
    OnLoop([&] { rate = sampling_->RatesOf("job").samples_per_second; });
    return rate;
  };
  AddJob(0);
  Issue(1);
  clock_.Advance(absl::Seconds(8));
  Generate(Lease());
  EXPECT_DOUBLE_EQ(samples_per_second(), 4 / 8.0);
  clock_.Advance(absl::Seconds(12));  // a step that takes longer to train than to generate
  EXPECT_DOUBLE_EQ(samples_per_second(), 4 / 20.0);
  clock_.Advance(absl::Seconds(41));
  EXPECT_DOUBLE_EQ(samples_per_second(), 4 / 60.0);
  clock_.Advance(absl::Seconds(20));
  EXPECT_EQ(samples_per_second(), 0);
}

TEST_F(SamplingTest, AScorerThatIsAwayCostsNoAttempt) {
  rewards_.answer = [](const auto& request) { return EachFailsWith(request, absl::StatusCode::kUnavailable); };
  AddJob(0, /*max_attempts=*/3);
  Issue(1);
  Generate(Lease());
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  EXPECT_GE(rewards_.sizes.size(), 20u);
  EXPECT_THAT(listener_.failed, IsEmpty());
  EXPECT_EQ(Counts().generated(), 4);
  OnLoop([&] { EXPECT_THAT(sampling_->LastProblem("job"), HasSubstr("the scorer said so")); });
  rewards_.answer = Ones;
  clock_.Advance(absl::Seconds(31));
  Tick();
  EXPECT_EQ(Counts().scored(), 4);
  OnLoop([&] { EXPECT_EQ(sampling_->LastProblem("job"), ""); });
}

TEST_F(SamplingTest, AScorersOwnErrorSpendsAttemptsAndThenFailsTheSample) {
  rewards_.answer = [](const auto& request) { return EachFailsWith(request, absl::StatusCode::kInternal); };
  AddJob(0, /*max_attempts=*/3);
  Issue(1);
  Generate(Lease());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  ASSERT_EQ(listener_.failed.size(), 4u);
  EXPECT_THAT(listener_.failed[0], HasSubstr("the scorer said so"));
  EXPECT_EQ(Counts().failed(), 4);
}

TEST_F(SamplingTest, RequestsThatTakeTooLongAreHalved) {
  AddJob(0);
  Issue(1);
  rewards_.answer = [](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (request.samples_size() > 1) return absl::DeadlineExceededError("60 s");
    return Ones(request);
  };
  Generate(Lease());
  for (int i = 0; i < 12; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  EXPECT_EQ(Counts().scored(), 4);
  EXPECT_THAT(listener_.scored, ElementsAre(1));
}

TEST_F(SamplingTest, RequestsAreCutByTheirBytesToo) {
  rewards_.answer = [](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (request.ByteSizeLong() > (64 << 20)) return absl::ResourceExhaustedError("message larger than max");
    return Ones(request);
  };
  AddJob(0);
  Issue(1);
  Generate(Lease(), std::string(7 << 20, 'x'));
  Tick();
  EXPECT_EQ(Counts().scored(), 4);
  EXPECT_THAT(rewards_.sizes, ElementsAre(2, 2));
  Issue(2);
  v1::PolicySource newer;
  newer.set_job_id("job");
  newer.mutable_version()->set_step(1);
  OnLoop([&] {
    WriteBatch batch;
    sampling_->SetPolicy("job", newer, &batch);
  });
  rewards_.sizes.clear();
  Generate(Lease(), std::string(17 << 20, 'x'));
  Tick();
  EXPECT_EQ(Counts().scored(), 8);
  EXPECT_THAT(rewards_.sizes, ElementsAre(1, 1, 1, 1));
}

TEST_F(SamplingTest, ADamagedSampleIsGeneratedAnewUnlessItsStepWasTrainedFromIt) {
  rewards_.answer = Ones;
  AddJob(0);
  Issue(1);
  Generate(Lease());
  ASSERT_EQ(Counts().scored(), 4);
  ASSERT_TRUE(payloads_->Sync().ok());
  const SampleKey key = {1, 2, 0};
  const auto stored = store_.Get(Table::kSamples, Ledger::RowKey("job", key));
  ASSERT_TRUE(stored.ok());
  v1::SampleRow row;
  ASSERT_TRUE(row.ParseFromString(*stored));
  {
    const std::string segment = dir_.File("payloads") + absl::StrFormat("/%08u.seg", row.payload().segment());
    std::fstream file(segment, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(row.payload().offset()) + 10);  // inside, behind the frame's header
    file.put('\x7f');
    ASSERT_TRUE(file.good());
  }
  Restart();  // nothing is in memory
  AddJob(0);
  const auto assign = [&](bool replay) {
    absl::StatusOr<std::vector<v1::Sample>> samples = absl::UnknownError("not called");
    OnLoop([&] {
      WriteBatch batch;
      samples = sampling_->AssignStep("job", 1, replay, &batch);
      store_.Commit(std::move(batch), [](absl::Status) {});
    });
    return samples;
  };
  const absl::Status lost = assign(/*replay=*/true).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()), AllOf(HasSubstr("sample 1/2/0"), HasSubstr("its checksum differs")));
  EXPECT_EQ(Counts().scored(), 4);  // nothing else is put in its place

  EXPECT_EQ(assign(/*replay=*/false).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Counts().scored(), 3);
  EXPECT_EQ(Counts().failed(), 1);
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 1);
  EXPECT_EQ(work.leases(0).ordinal(), 2);
  Generate(work);
  EXPECT_EQ(Counts().scored(), 4);
  const absl::StatusOr<std::vector<v1::Sample>> samples = assign(/*replay=*/false);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ(samples->size(), 4u);
  EXPECT_EQ(Counts().assigned(), 4);
  EXPECT_THAT(listener_.failed, IsEmpty());
}

TEST_F(SamplingTest, RequestsGrowAgainWhenTheyAreInTime) {
  AddJob(/*policy_step=*/100);
  size_t most = 1;  // samples that a scorer manages in time
  rewards_.answer = [&most](const v1::ScoreRequest& request) -> absl::StatusOr<v1::ScoreResponse> {
    if (static_cast<size_t>(request.samples_size()) > most) return absl::DeadlineExceededError("60 s");
    return Ones(request);
  };
  int64_t step = 0;
  const auto score_steps = [&](int steps) {
    for (const int64_t end = step + steps; step < end;) {
      Issue(++step);
      Generate(Lease());
      for (int i = 0; i < 12 && Counts().scored() < 4 * step; ++i) {
        clock_.Advance(absl::Seconds(31));
        Tick();
      }
      ASSERT_EQ(Counts().scored(), 4 * step);
    }
  };
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(4, 2, 2, 1, 1, 1, 1));
  most = 4;
  // 16 requests of one sample, 16 of two, then all four at once.
  score_steps(3 + 8);
  rewards_.sizes.clear();
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(4));

  // Too much again: now doubling takes twice as many.
  most = 2;
  score_steps(1 + 8);
  rewards_.sizes.clear();
  score_steps(1);
  EXPECT_THAT(rewards_.sizes, ElementsAre(2, 2));
}

TEST_F(SamplingTest, AStepBeyondTheLagBoundIsNotLeasedYet) {
  AddJob(0);
  Issue(1);
  Issue(2);  // max_policy_lag is 0: step 2 needs version 1
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 4);
  EXPECT_EQ(work.leases(0).step(), 1);
  EXPECT_EQ(Lease().leases_size(), 0);
  v1::PolicySource newer;
  newer.set_job_id("job");
  newer.mutable_version()->set_step(1);
  OnLoop([&] {
    WriteBatch batch;
    sampling_->SetPolicy("job", newer, &batch);
  });
  EXPECT_EQ(Lease().leases_size(), 4);
}

// Beyond the fan-out's degree, workers are named before the learner; a new version begins anew.
TEST_F(SamplingTest, WorkersAreToldFromWhomToGetTheWeights) {
  AddJob(0);
  const auto commit = [&](int64_t step) {
    v1::PolicySource policy;
    policy.set_job_id("job");
    policy.mutable_version()->set_step(step);
    policy.add_addresses("learner:7");
    OnLoop([&] {
      WriteBatch batch;
      sampling_->SetPolicy("job", policy, &batch);
    });
  };
  const auto asks = [&](const std::string& session) {
    worker_ = session;
    const v1::LeasePromptsResponse work = Lease(1);
    EXPECT_EQ(work.leases_size(), 1);
    return work.leases_size() == 0 ? v1::PolicySource() : work.leases(0).policy();
  };
  commit(1);
  Issue(1);
  Issue(2);
  std::vector<std::string> workers;
  for (int i = 0; i < 5; ++i)
    workers.push_back(Register(v1::ROLE_ROLLOUT_WORKER, absl::StrCat("rollout-", i), absl::StrCat("host:", i)));
  EXPECT_THAT(asks(workers[0]).addresses(), ElementsAre("learner:7"));
  EXPECT_THAT(asks(workers[1]).addresses(), ElementsAre("learner:7"));
  const v1::PolicySource third = asks(workers[2]);
  EXPECT_THAT(third.addresses(), ElementsAre("host:0", "learner:7"));
  EXPECT_TRUE(third.relay());
  EXPECT_THAT(asks(workers[3]).addresses(), ElementsAre("host:0", "learner:7"));
  EXPECT_THAT(asks(workers[4]).addresses(), ElementsAre("host:1", "learner:7"));
  EXPECT_THAT(asks(workers[4]).addresses(), ElementsAre("host:1", "learner:7"));
  const std::string again = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0", "host:9");
  EXPECT_THAT(asks(workers[2]).addresses(), ElementsAre("learner:7"));
  EXPECT_THAT(asks(again).addresses(), ElementsAre("learner:7"));
  commit(2);
  Issue(3);
  EXPECT_THAT(asks(workers[4]).addresses(), ElementsAre("learner:7"));
}

TEST_F(SamplingTest, TwoWorkersGetTheWeightsFromTheLearnerAndKeepNothingForOthers) {
  Register(v1::ROLE_ROLLOUT_WORKER, "rollout-1", "host:1");
  AddJob(0);
  v1::PolicySource policy;
  policy.set_job_id("job");
  policy.mutable_version()->set_step(1);
  policy.add_addresses("learner:7");
  OnLoop([&] {
    WriteBatch batch;
    sampling_->SetPolicy("job", policy, &batch);
  });
  Issue(1);
  const v1::LeasePromptsResponse work = Lease(1);
  ASSERT_EQ(work.leases_size(), 1);
  EXPECT_THAT(work.leases(0).policy().addresses(), ElementsAre("learner:7"));
  EXPECT_FALSE(work.leases(0).policy().relay());
}

// A worker that asks for more before it has finished what it has would never be free: it gets no more of a job when
// another one is to have it, and moves when it holds nothing.
TEST_F(SamplingTest, AWorkerThatAlwaysAsksForMoreIsStillMovedToAHigherPriority) {
  AddJob(0);
  Issue(1);
  const v1::LeasePromptsResponse first = Lease(2);
  ASSERT_EQ(first.leases_size(), 2);
  const v1::LeasePromptsResponse more = Lease(1);
  ASSERT_EQ(more.leases_size(), 1) << "nobody else wants it";
  AddJob(0, 3, "higher", /*priority=*/1);
  Issue(1, "higher");
  EXPECT_EQ(Lease(1).leases_size(), 0);
  Generate(first);
  EXPECT_EQ(Lease(1).leases_size(), 0) << "it still has one";
  Generate(more);
  const v1::LeasePromptsResponse moved = Lease();
  ASSERT_EQ(moved.leases_size(), 4);
  EXPECT_EQ(moved.leases(0).job_id(), "higher");
  Generate(moved);
  EXPECT_EQ(Lease().leases(0).job_id(), "job");
}

TEST_F(SamplingTest, EqualJobsTakeTurnsAndAnUnfinishedOneKeepsItsWorker) {
  AddJob(0);
  AddJob(0, 3, "other");
  Issue(1);
  Issue(1, "other");
  const v1::LeasePromptsResponse first = Lease(1);
  ASSERT_EQ(first.leases_size(), 1);
  const std::string mine = first.leases(0).job_id();
  const v1::LeasePromptsResponse second = Lease(1);
  ASSERT_EQ(second.leases_size(), 1) << "equals do not take from each other";
  EXPECT_EQ(second.leases(0).job_id(), mine);
  clock_.Advance(absl::Minutes(5));
  Generate(first);
  Generate(second);
  const v1::LeasePromptsResponse third = Lease(1);
  ASSERT_EQ(third.leases_size(), 1);
  EXPECT_EQ(third.leases(0).job_id(), mine);
  // After ten minutes in vain the other one is next.
  clock_.Advance(absl::Minutes(6));
  Generate(third);
  const v1::LeasePromptsResponse last = Lease(1);
  ASSERT_EQ(last.leases_size(), 1);
  EXPECT_NE(last.leases(0).job_id(), mine);
}

// The leases go back with what `change` says of each.
v1::ReturnLeasesRequest Returned(const std::string& session, const v1::LeasePromptsResponse& work,
                                 const std::function<void(v1::ReturnedLease*)>& change) {
  v1::ReturnLeasesRequest request;
  request.set_session_id(session);
  for (const v1::PromptLease& lease : work.leases()) {
    for (const v1::SampleLease& sample : lease.samples()) {
      v1::ReturnedLease* returned = request.add_leases();
      returned->mutable_id()->set_job_id(lease.job_id());
      returned->mutable_id()->set_step(lease.step());
      returned->mutable_id()->set_ordinal(lease.ordinal());
      returned->mutable_id()->set_index(sample.index());
      returned->set_attempt(sample.attempt());
      change(returned);
    }
  }
  return request;
}

TEST_F(SamplingTest, WhatAWorkerCannotHaveForNowCostsNoAttemptAndIsTold) {
  AddJob(0, /*max_attempts=*/2);
  Issue(1);
  for (int i = 0; i < 5; ++i) {
    const v1::LeasePromptsResponse work = Lease();
    ASSERT_EQ(work.leases_size(), 4);
    const v1::ReturnLeasesRequest request = Returned(worker_, work, [](v1::ReturnedLease* returned) {
      returned->set_error("no such artifact");
      returned->set_unavailable(true);
    });
    OnLoop([&] { sampling_->ReturnLeases(request, [](auto) {}); });
  }
  EXPECT_THAT(listener_.failed, IsEmpty());
  OnLoop([&] { EXPECT_THAT(sampling_->LastProblem("job"), HasSubstr("no such artifact")); });
}

TEST_F(SamplingTest, ARewardServerThatCannotScoreAJobIsPassedOverAndTheJobWaitsWhileNoneCan) {
  const auto situation = [&] {
    Sampling::Situation out;
    OnLoop([&] { out = sampling_->SituationOf("job"); });
    return out;
  };
  rewards_.answer = Ones;
  rewards_.unsuited = {"nowhere:1"};
  AddJob(0, /*max_attempts=*/1);
  Issue(1);
  Generate(Lease());
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(absl::Seconds(31));
    Tick();
  }
  // It was asked once, nothing failed, and the job says what it waits for.
  EXPECT_THAT(rewards_.asked, ElementsAre("nowhere:1"));
  EXPECT_THAT(listener_.failed, IsEmpty());
  EXPECT_EQ(Counts().generated(), 4);
  EXPECT_EQ(situation().reward_servers, 1);
  EXPECT_EQ(situation().unsuited_reward_servers, 1);
  EXPECT_THAT(situation().unsuited_reward_why, AllOf(HasSubstr("reward-0"), HasSubstr("--precision float32")));
  OnLoop([&] { EXPECT_THAT(sampling_->LastProblem("job"), HasSubstr("--precision float32")); });

  // Another that can.
  Register(v1::ROLE_REWARD_SERVER, "reward-1", "nowhere:2");
  Tick();
  EXPECT_EQ(Counts().scored(), 4);
  EXPECT_THAT(rewards_.asked, ElementsAre("nowhere:1", "nowhere:2"));
  EXPECT_EQ(situation().unsuited_reward_servers, 1);

  // Started anew, it may be another.
  Register(v1::ROLE_REWARD_SERVER, "reward-0", "nowhere:1");
  EXPECT_EQ(situation().unsuited_reward_servers, 0);
}

TEST_F(SamplingTest, AWorkerThatIsTooSmallForAPromptIsPassedOverForItAlone) {
  const std::string small = worker_;
  AddJob(0, /*max_attempts=*/1);
  AddJob(0, /*max_attempts=*/1, "another", /*priority=*/-1);
  Issue(1);
  Issue(1, "another");
  // The first prompt of "job" is too long for it, as it says; it may do the others.
  const auto refuse_first = [&](const v1::LeasePromptsResponse& work) {
    v1::LeasePromptsResponse first, rest;
    for (const v1::PromptLease& lease : work.leases()) *(lease.ordinal() == 0 ? first : rest).add_leases() = lease;
    const v1::ReturnLeasesRequest request = Returned(worker_, first, [](v1::ReturnedLease* returned) {
      returned->set_error("prompt 0 has 90 tokens: raise --max-tokens");
      returned->set_unsuited(true);
      returned->set_permanent(true);
    });
    OnLoop([&] { sampling_->ReturnLeases(request, [](auto) {}); });
    Generate(rest);
  };
  const auto situation = [&] {
    Sampling::Situation out;
    OnLoop([&] { out = sampling_->SituationOf("job"); });
    return out;
  };
  refuse_first(Lease());
  EXPECT_EQ(Counts().generated(), 3);
  EXPECT_EQ(Counts().queued(), 1);
  EXPECT_EQ(situation().unsuited_workers, 0);
  EXPECT_EQ(situation().too_large_samples, 1);
  EXPECT_THAT(situation().too_large_why, AllOf(HasSubstr("rollout-0"), HasSubstr("raise --max-tokens")));
  // What waits for another keeps it from nothing else.
  const v1::LeasePromptsResponse other = Lease();
  ASSERT_EQ(other.leases_size(), 4);
  EXPECT_EQ(other.leases(0).job_id(), "another");
  Generate(other);

  // It asks first and gets nothing; one that is larger, which asks behind it, does.
  v1::LeasePromptsRequest patient;
  patient.set_session_id(small);
  patient.set_max_samples(64);
  patient.set_wait_ms(3'600'000);
  OnLoop([&] { sampling_->LeasePrompts(patient, [](auto) {}); });
  worker_ = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-1");
  EXPECT_EQ(situation().too_large_samples, 0);
  const v1::LeasePromptsResponse large = Lease();
  ASSERT_EQ(large.leases_size(), 1);
  EXPECT_EQ(large.leases(0).ordinal(), 0);
  const v1::ReturnLeasesRequest back = Returned(worker_, large, [](v1::ReturnedLease*) {});
  OnLoop([&] { sampling_->ReturnLeases(back, [](auto) {}); });
  clock_.Advance(absl::Minutes(3));
  Tick();
  EXPECT_THAT(listener_.failed, IsEmpty()) << "somebody has the room";

  // Once nobody has it, and nobody is expected back who may have it, it fails with what was said.
  worker_ = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-1");  // its session before is lost
  refuse_first(Lease());
  Tick();
  EXPECT_THAT(listener_.failed, IsEmpty());
  EXPECT_EQ(situation().too_large_samples, 1);
  clock_.Advance(absl::Minutes(3));
  Tick();
  EXPECT_THAT(listener_.failed, ElementsAre(AllOf(HasSubstr("no rollout worker has the room for it: rollout-"),
                                                  HasSubstr("prompt 0 has 90 tokens"))));
  EXPECT_EQ(Counts().failed(), 1);
}

TEST_F(SamplingTest, AWorkerThatCannotServeAJobIsPassedOver) {
  const std::string other = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-1");
  AddJob(0, /*max_attempts=*/1);
  Issue(1);
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 2) << "half of what there is";
  const v1::ReturnLeasesRequest request = Returned(worker_, work, [](v1::ReturnedLease* returned) {
    returned->set_error("start this worker with --precision float32");
    returned->set_unsuited(true);
  });
  OnLoop([&] { sampling_->ReturnLeases(request, [](auto) {}); });
  EXPECT_THAT(listener_.failed, IsEmpty());
  EXPECT_EQ(Counts().queued(), 4);
  const auto situation = [&] {
    Sampling::Situation out;
    OnLoop([&] { out = sampling_->SituationOf("job"); });
    return out;
  };
  EXPECT_EQ(situation().unsuited_workers, 1);
  EXPECT_EQ(situation().rollout_workers, 2);
  EXPECT_THAT(situation().unsuited_why, AllOf(HasSubstr("rollout-0"), HasSubstr("--precision float32")));
  EXPECT_EQ(Lease().leases_size(), 0);

  // It waits for work, and asked first: the other gets all the same.
  v1::LeasePromptsRequest patient;
  patient.set_session_id(worker_);
  patient.set_max_samples(64);
  patient.set_wait_ms(3'600'000);
  std::vector<std::string> served;
  OnLoop([&] {
    sampling_->LeasePrompts(patient, [&](auto response) {
      ASSERT_TRUE(response.ok()) << response.status();
      for (const v1::PromptLease& lease : response->leases()) served.push_back(lease.job_id());
    });
  });
  const std::string unsuited = std::exchange(worker_, other);
  const v1::LeasePromptsResponse all = Lease();
  EXPECT_EQ(all.leases_size(), 4) << "a share of what only this worker can do is all of it";
  EXPECT_THAT(served, IsEmpty());
  // Of another job it gets its share.
  AddJob(0, 3, "another");
  Issue(1, "another");
  EXPECT_THAT(served, ElementsAre("another", "another"));

  // Started anew, it may be another.
  const v1::ReturnLeasesRequest back = Returned(other, all, [](v1::ReturnedLease*) {});
  worker_ = Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
  OnLoop([&] { sampling_->ReturnLeases(back, [](auto) {}); });
  EXPECT_EQ(situation().unsuited_workers, 0);
  bool leased = false;
  for (int i = 0; i < 5 && !leased; ++i) {
    const v1::LeasePromptsResponse more = Lease();
    leased = more.leases_size() > 0 && more.leases(0).job_id() == "job";
    Generate(more);
  }
  EXPECT_TRUE(leased);
}

}  // namespace
}  // namespace rlhf::coordinator
