// What a job hears after a restart, which samples are taken, and who may lease what.
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/ledger.h"
#include "tests/coordinator/sampling_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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
