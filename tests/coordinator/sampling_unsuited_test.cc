// Who cannot serve a job, or one prompt of it, as it was started: others do.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/sampling_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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

TEST_F(SamplingTest, AWorkerThatHasMoreRoomNowIsAskedAgain) {
  AddJob(0, /*max_attempts=*/1);
  Issue(1);
  const v1::LeasePromptsResponse work = Lease();
  ASSERT_EQ(work.leases_size(), 4);
  const v1::ReturnLeasesRequest back = Returned(worker_, work, [](v1::ReturnedLease* returned) {
    returned->set_error("its keys and values need 1000 bytes: raise --kv-cache-bytes");
    returned->set_unsuited(true);
    returned->set_permanent(true);
    // One is beyond its --max-tokens.
    returned->set_needs_cache_bytes(returned->id().ordinal() == 3 ? 0 : 1000);
  });
  OnLoop([&] { sampling_->ReturnLeases(back, [](auto) {}); });
  const auto heartbeat = [&](int64_t cache_bytes) {
    v1::HeartbeatRequest request;
    request.set_session_id(worker_);
    request.set_cache_bytes(cache_bytes);
    OnLoop([&] { fleet_->Heartbeat(request, [](auto response) { ASSERT_TRUE(response.ok()) << response.status(); }); });
  };
  EXPECT_EQ(Lease().leases_size(), 0);
  heartbeat(0);  // of an older release, or between two models
  heartbeat(999);
  EXPECT_EQ(Lease().leases_size(), 0);

  // Beside another model it has more room; that is no more for this one.
  AddJob(0, /*max_attempts=*/2, "another", /*priority=*/-1, "another-model");
  Issue(1, "another");
  const v1::LeasePromptsResponse other = Lease();
  ASSERT_EQ(other.leases_size(), 4);
  EXPECT_EQ(other.leases(0).job_id(), "another");
  heartbeat(5000);
  Generate(other);
  EXPECT_EQ(Lease().leases_size(), 0);
  AddJob(0, /*max_attempts=*/2, "same", /*priority=*/-1);
  Issue(1, "same");
  const v1::LeasePromptsResponse same = Lease();
  ASSERT_EQ(same.leases_size(), 4);
  Generate(same);

  // A poll that waits is served at once.
  v1::LeasePromptsRequest patient;
  patient.set_session_id(worker_);
  patient.set_max_samples(64);
  patient.set_wait_ms(3'600'000);
  v1::LeasePromptsResponse served;
  OnLoop([&] {
    sampling_->LeasePrompts(patient, [&](auto response) {
      if (response.ok()) served = *std::move(response);
    });
  });
  EXPECT_EQ(served.leases_size(), 0);
  heartbeat(1000);
  ASSERT_EQ(served.leases_size(), 3);
  for (const v1::PromptLease& lease : served.leases()) EXPECT_NE(lease.ordinal(), 3);
  Generate(served);
  EXPECT_EQ(Counts().generated(), 3);
  EXPECT_EQ(Counts().queued(), 1);
  EXPECT_THAT(listener_.failed, IsEmpty());
}

}  // namespace
}  // namespace rlhf::coordinator
