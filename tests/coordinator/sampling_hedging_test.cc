// Second attempts of what takes long: which of two counts, and what a straggler costs.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/sampling_faults_fixture.h"

namespace rlhf::coordinator {
namespace {

TEST_F(SamplingFaults, TheFirstOfTwoAttemptsWinsAndTheOtherIsHarmless) {
  const std::string slow = Register("slow"), quick = Register("quick");
  Issue(1, 16);
  const auto first = Lease(slow, 1);
  ASSERT_EQ(first.size(), 1u);
  const std::vector<v1::LeaseProgress> rest = LeaseAll(quick, 15);
  ASSERT_EQ(rest.size(), 15u);
  Pass(absl::Milliseconds(300));
  for (const auto& lease : rest) EXPECT_TRUE(Submit(quick, lease).accepted());
  EXPECT_THAT(Lease(quick, 4), testing::IsEmpty());  // nothing takes long yet
  Report(slow, first);
  Pass(absl::Milliseconds(600));
  const auto hedge = Lease(quick, 4);
  ASSERT_EQ(hedge.size(), 1u);
  EXPECT_EQ(hedge[0].attempt(), first[0].attempt() + 1);
  EXPECT_EQ(Report(slow, first), 0);                 // both go on
  EXPECT_THAT(Lease(quick, 4), testing::IsEmpty());  // no third attempt
  EXPECT_TRUE(Submit(slow, first[0]).accepted());    // the slow one was first after all
  EXPECT_EQ(Submit(quick, hedge[0]).reason(), v1::STALE_ATTEMPT);
  EXPECT_TRUE(Submit(slow, first[0]).accepted());
  EXPECT_EQ(Report(quick, hedge), 1);
  EXPECT_EQ(scored_, std::vector<int64_t>({1}));
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, AnUnsuitedWorkerIsNoHelpAndKeepsNobodyFromHelping) {
  const std::string unsuited = Register("unsuited");
  Issue(1, 16);
  const auto returned = Lease(unsuited, 1);
  ASSERT_EQ(returned.size(), 1u);
  v1::ReturnLeasesRequest give_back;
  give_back.set_session_id(unsuited);
  v1::ReturnedLease* lease = give_back.add_leases();
  *lease->mutable_id() = returned[0].id();
  lease->set_attempt(returned[0].attempt());
  lease->set_error("another precision");
  lease->set_unsuited(true);
  sampling_->ReturnLeases(give_back, [](auto) {});
  loop_.Run();
  const std::string slow = Register("slow"), quick = Register("quick");
  ASSERT_EQ(Lease(slow, 1).size(), 1u);
  const std::vector<v1::LeaseProgress> rest = LeaseAll(quick, 15);
  ASSERT_EQ(rest.size(), 15u);
  for (const auto& each : rest) EXPECT_TRUE(Submit(quick, each).accepted());
  Pass(absl::Seconds(1));
  EXPECT_THAT(Lease(unsuited, 1), testing::IsEmpty());
  EXPECT_EQ(Lease(quick, 1).size(), 1u);
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, WhenTheHedgeDiesTheFirstAttemptGoesOn) {
  const std::string slow = Register("slow"), quick = Register("quick");
  Issue(1, 16);
  const auto first = Lease(slow, 1);
  const std::vector<v1::LeaseProgress> rest = LeaseAll(quick, 15);
  ASSERT_EQ(rest.size(), 15u);
  for (const auto& lease : rest) EXPECT_TRUE(Submit(quick, lease).accepted());
  Pass(absl::Seconds(1));
  Report(slow, first);
  ASSERT_EQ(Lease(quick, 1).size(), 1u);
  v1::LeaseProgress progress = first[0];
  for (int i = 0; i < 10; ++i) {
    Pass(absl::Seconds(1));
    progress.set_tokens_done(i + 1);
    EXPECT_EQ(Report(slow, {progress}), 0);
  }
  EXPECT_EQ(sampling_->Counts("job").leased(), 1);
  EXPECT_TRUE(Submit(slow, first[0]).accepted());
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, WhenTheFirstAttemptDiesTheHedgeGoesOn) {
  const std::string slow = Register("slow"), quick = Register("quick");
  Issue(1, 16);
  const auto first = Lease(slow, 1);
  ASSERT_EQ(first.size(), 1u);
  const std::vector<v1::LeaseProgress> rest = LeaseAll(quick, 15);
  ASSERT_EQ(rest.size(), 15u);
  for (const auto& lease : rest) EXPECT_TRUE(Submit(quick, lease).accepted());
  Pass(absl::Seconds(1));
  Report(slow, first);
  const auto hedge = Lease(quick, 1);
  ASSERT_EQ(hedge.size(), 1u);
  const std::string again = Register("slow");  // its process died and was started again
  EXPECT_EQ(Report(again, first), 1);
  EXPECT_EQ(Report(quick, hedge), 0);
  EXPECT_EQ(sampling_->Counts("job").leased(), 1);
  EXPECT_EQ(Submit(again, first[0]).reason(), v1::STALE_ATTEMPT);
  EXPECT_TRUE(Submit(quick, hedge[0]).accepted());
  EXPECT_EQ(scored_, std::vector<int64_t>({1}));
  ExpectAllAccountedFor();
}

// Its volume hangs, and there are no results yet by which anything took long.
TEST_F(SamplingFaults, WhatAWorkerCannotBeginIsTriedElsewhereWithoutAnyResult) {
  const std::string loading = Register("loading"), idle = Register("idle");
  Issue(1, 2);
  auto held = LeaseAll(loading, 2);
  ASSERT_EQ(held.size(), 2u);
  for (auto& lease : held) lease.set_loading(true);
  const auto pass = [&](int seconds) {
    for (int i = 0; i < seconds; ++i) {
      Pass(absl::Seconds(1));
      EXPECT_EQ(Report(loading, held), 0) << i;
      Report(idle, {});
    }
  };
  pass(10);
  const Sampling::Situation situation = sampling_->SituationOf("job");
  EXPECT_EQ(situation.loading, 2);
  EXPECT_EQ(situation.loading_by, "loading");
  EXPECT_EQ(situation.loading_for, absl::Seconds(10));
  held[1].set_loading(false);
  held[1].set_tokens_done(1);  // this one began: how long it takes nobody knows
  pass(45);
  EXPECT_THAT(Lease(idle, 2), testing::IsEmpty());
  pass(10);
  const auto hedge = Lease(idle, 2);
  ASSERT_EQ(hedge.size(), 1u);
  EXPECT_EQ(hedge[0].id().ordinal(), held[0].id().ordinal());
  EXPECT_TRUE(Submit(idle, hedge[0]).accepted());
  EXPECT_EQ(Submit(loading, held[0]).reason(), v1::STALE_ATTEMPT);
  EXPECT_TRUE(Submit(loading, held[1]).accepted());
  EXPECT_EQ(scored_, std::vector<int64_t>({1}));
  ExpectAllAccountedFor();
}

// Eight workers of eight samples at once, a sample a second at each; one may be ten times slower. Virtual time.
class Stragglers : public SamplingFaults {
 protected:
  struct SimulatedWorker {
    std::string session;
    double seconds_a_sample;
    std::vector<std::pair<absl::Duration, v1::LeaseProgress>> running;  // done at
  };
  // Mean seconds a step over `steps` steps of 512 samples: eight rounds of what all can hold.
  double SecondsAStep(double slowness, int64_t first_step, int steps) {
    std::vector<SimulatedWorker> workers;
    for (int i = 0; i < 8; ++i) workers.push_back({Register(absl::StrCat("w", i)), i == 0 ? slowness : 1.0, {}});
    const absl::Duration began = clock_.Now();
    absl::Duration heartbeat = began;
    for (int64_t step = first_step; step < first_step + steps; ++step) {
      // The step before is committed: samples of a later step wait for that.
      v1::PolicySource policy;
      policy.mutable_version()->set_step(step - 1);
      WriteBatch batch;
      sampling_->SetPolicy("job", policy, &batch);
      Issue(step, 512);
      while (!sampling_->StepScored("job", step)) {
        for (SimulatedWorker& worker : workers) {
          const int free = 8 - static_cast<int>(worker.running.size());
          if (free > 0) {
            for (const auto& lease : Lease(worker.session, free))
              worker.running.emplace_back(clock_.Now() + absl::Seconds(worker.seconds_a_sample), lease);
          }
        }
        Pass(absl::Milliseconds(50));
        for (SimulatedWorker& worker : workers) {
          for (auto& [done_at, lease] : worker.running) {
            if (done_at <= clock_.Now()) Submit(worker.session, lease);
          }
          std::erase_if(worker.running, [&](const auto& one) { return one.first <= clock_.Now(); });
        }
        if (clock_.Now() - heartbeat < absl::Seconds(1)) continue;
        heartbeat = clock_.Now();
        for (SimulatedWorker& worker : workers) {
          std::vector<v1::LeaseProgress> leases;
          for (const auto& [done_at, lease] : worker.running) leases.push_back(lease);
          if (Report(worker.session, leases) > 0) {
            // The engine drops what was revoked.
            std::erase_if(worker.running, [&](const auto& one) { return Report(worker.session, {one.second}) > 0; });
          }
        }
      }
    }
    return absl::ToDoubleSeconds(clock_.Now() - began) / steps;
  }
};

TEST_F(Stragglers, OneOfEightTenTimesSlowerCostsLittle) {
  const double even = SecondsAStep(1, 1, 3);
  const double with_straggler = SecondsAStep(10, 4, 5);
  RecordProperty("even", absl::StrCat(even));
  RecordProperty("with_straggler", absl::StrCat(with_straggler));
  std::printf("step time %.2f s, with one of 8 ten times slower %.2f s: %.2f x\n", even, with_straggler,
              with_straggler / even);
  EXPECT_LE(with_straggler, 1.3 * even);
  ExpectAllAccountedFor();
}

}  // namespace
}  // namespace rlhf::coordinator
