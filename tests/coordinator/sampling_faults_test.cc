// Duplicates, late and forged results, workers that report and get nowhere; checks while work goes on.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/sampling_faults_fixture.h"

namespace rlhf::coordinator {
namespace {

TEST_F(SamplingFaults, TheSameBytesGetTheSameAnswerOtherBytesNone) {
  const std::string worker = Register("w");
  Issue(1, 2);
  const auto leases = Lease(worker, 4);
  ASSERT_EQ(leases.size(), 2u);
  // Reordered, and each twice.
  for (const size_t i : {1u, 0u, 1u, 0u}) EXPECT_TRUE(Submit(worker, leases[i]).accepted());
  const v1::SampleVerdict forged = Submit(worker, leases[0], 8);
  EXPECT_FALSE(forged.accepted());
  EXPECT_EQ(forged.reason(), v1::DIGEST_MISMATCH);
  EXPECT_EQ(forged.code(), static_cast<int>(absl::StatusCode::kAborted));
  EXPECT_EQ(scored_, std::vector<int64_t>({1}));
  ExpectAllAccountedFor();
}

// A driver issues samples and says that they may be leased before it commits the batch with their rows.
TEST_F(SamplingFaults, ALeaseIsWrittenAfterTheSamplesItTakes) {
  v1::LeasePromptsRequest request;
  request.set_session_id(Register("waiting"));
  request.set_max_samples(4);
  request.set_wait_ms(10'000);
  int leased = 0;
  sampling_->LeasePrompts(request, [&](absl::StatusOr<v1::LeasePromptsResponse> response) {
    if (response.ok()) leased = response->leases_size();
  });
  loop_.Run();
  WriteBatch batch;
  sampling_->IssueStep("job", 1, 0, 2, &batch);
  sampling_->SetPaused("job", false);
  ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  loop_.Run();
  EXPECT_EQ(leased, 2);
  ExpectAllAccountedFor();  // by their rows, too
}

TEST_F(SamplingFaults, ACheckReadsElsewhereWhileWorkGoesOn) {
  const std::string worker = Register("w");
  Issue(1, 4);
  const std::vector<v1::LeaseProgress> leases = Lease(worker, 4);
  ASSERT_EQ(leases.size(), 4u);
  EXPECT_TRUE(Submit(worker, leases[0]).accepted());
  // What is submitted while the check waits for its thread is answered, and is no difference to complain of.
  const auto submit_another = [&] { EXPECT_TRUE(Submit(worker, leases[1]).accepted()); };
  const absl::StatusOr<Sampling::Findings> busy = Findings(submit_another);
  ASSERT_TRUE(busy.ok()) << busy.status();
  EXPECT_THAT(busy->violations, testing::IsEmpty());
  EXPECT_THAT(busy->notes, testing::ElementsAre(testing::HasSubstr("the counts of step 1 were not compared")));
  EXPECT_THAT(Check(), testing::IsEmpty());

  WriteBatch loss;
  loss.Erase(Table::kSamples, Ledger::RowKey("job", {1, 3, 0}));
  ASSERT_TRUE(store_.CommitAndWait(std::move(loss)).ok());
  EXPECT_THAT(Check(), testing::ElementsAre(testing::HasSubstr("step 1: rows say {issued: 3")));
}

TEST_F(SamplingFaults, AStepThatDoesNotChangeIsComparedWhileOthersDo) {
  const std::string worker = Register("w");
  Issue(1, 2);
  Issue(2, 2);
  std::vector<v1::LeaseProgress> leases = Lease(worker, 4);
  ASSERT_EQ(leases.size(), 2u) << "the lag bound is 0";
  v1::PolicySource newer;
  newer.set_job_id("job");
  newer.mutable_version()->set_step(1);
  WriteBatch policy;
  sampling_->SetPolicy("job", newer, &policy);
  ASSERT_TRUE(store_.CommitAndWait(std::move(policy)).ok());
  for (v1::LeaseProgress& lease : Lease(worker, 4)) leases.push_back(std::move(lease));
  ASSERT_EQ(leases.size(), 4u);
  WriteBatch loss;
  loss.Erase(Table::kSamples, Ledger::RowKey("job", {leases[0].id().step(), leases[0].id().ordinal(), 0}));
  ASSERT_TRUE(store_.CommitAndWait(std::move(loss)).ok());
  ASSERT_EQ(leases[0].id().step(), 1);
  ASSERT_EQ(leases[3].id().step(), 2);
  const absl::StatusOr<Sampling::Findings> found = Findings([&] { EXPECT_TRUE(Submit(worker, leases[3]).accepted()); });
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(found->violations, testing::ElementsAre(testing::HasSubstr("step 1: rows say {issued: 1")));
  EXPECT_THAT(found->notes, testing::ElementsAre(testing::HasSubstr("step 2 were not compared")));
}

TEST_F(SamplingFaults, ACheckEndsWhenNobodyWaitsForIt) {
  Issue(1, 4);
  int asked = 0;
  const absl::StatusOr<Sampling::Findings> found = Findings([] {}, [&] { return ++asked == 2; });
  EXPECT_EQ(found.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 2);  // of four rows
}

TEST_F(SamplingFaults, ALateResultIsFenced) {
  const std::string slow = Register("slow");
  Issue(1, 1);
  const auto old = Lease(slow, 1);
  ASSERT_EQ(old.size(), 1u);
  Pass(kLease + absl::Seconds(1));  // no heartbeat: the session and its lease are gone
  const std::string other = Register("other");
  const auto fresh = Lease(other, 1);
  ASSERT_EQ(fresh.size(), 1u);
  EXPECT_EQ(fresh[0].attempt(), old[0].attempt() + 1);
  EXPECT_EQ(Report(slow, old), -1);  // it has to register again
  const std::string back = Register("slow");
  EXPECT_EQ(Report(back, old), 1);  // and is told that the lease is not its any more
  const v1::SampleVerdict late = Submit(back, old[0]);
  EXPECT_FALSE(late.accepted());
  EXPECT_EQ(late.reason(), v1::STALE_ATTEMPT);
  EXPECT_EQ(late.code(), static_cast<int>(absl::StatusCode::kAborted));
  v1::LeaseProgress future = fresh[0];
  future.set_attempt(9);
  EXPECT_EQ(Submit(other, future).reason(), v1::STALE_ATTEMPT);
  EXPECT_TRUE(Submit(other, fresh[0]).accepted());
  EXPECT_EQ(Submit(back, old[0]).reason(), v1::STALE_ATTEMPT);
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, ARefusedSampleHasAReasonAndACode) {
  const std::string worker = Register("w");
  Issue(1, 1);
  const auto leases = Lease(worker, 1);
  ASSERT_EQ(leases.size(), 1u);
  const v1::SampleVerdict malformed = Submit(worker, leases[0], -1);
  EXPECT_FALSE(malformed.accepted());
  EXPECT_EQ(malformed.reason(), v1::SAMPLE_MALFORMED);
  EXPECT_EQ(malformed.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(sampling_->Counts("job").queued(), 1);
  v1::LeaseProgress nobodys = leases[0];
  nobodys.mutable_id()->set_job_id("ended");
  const v1::SampleVerdict late = Submit(worker, nobodys);
  EXPECT_EQ(late.reason(), v1::JOB_NOT_ACTIVE);
  EXPECT_EQ(late.code(), static_cast<int>(absl::StatusCode::kAborted));
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, TheMassThatSamplingKeptIsOfEveryTokenAndANumber) {
  const std::string worker = Register("w");
  Issue(1, 1);
  for (const std::vector<float>& wrong : {std::vector<float>{-0.1F, -0.1F}, std::vector<float>{-INFINITY}}) {
    const auto leases = Lease(worker, 1);
    ASSERT_EQ(leases.size(), 1u);
    EXPECT_EQ(Submit(worker, leases[0], 7, wrong).reason(), v1::SAMPLE_MALFORMED);
  }
  const auto leases = Lease(worker, 1);
  ASSERT_EQ(leases.size(), 1u);
  EXPECT_TRUE(Submit(worker, leases[0], 7, {-0.1F}).accepted());
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, ALeaseIsItsWorkersAlone) {
  const std::string owner = Register("owner"), thief = Register("thief");
  Issue(1, 4);
  const auto leases = Lease(owner, 4);
  ASSERT_EQ(leases.size(), 2u);
  EXPECT_EQ(Report(thief, leases), 2);
  const v1::SampleVerdict stolen = Submit(thief, leases[0]);
  EXPECT_FALSE(stolen.accepted());
  EXPECT_EQ(stolen.reason(), v1::STALE_ATTEMPT);
  v1::ReturnLeasesRequest ended;
  ended.set_session_id(thief);
  for (const v1::LeaseProgress& lease : leases) {
    v1::ReturnedLease* returned = ended.add_leases();
    *returned->mutable_id() = lease.id();
    returned->set_attempt(lease.attempt());
    returned->set_error("no such prompt");
    returned->set_permanent(true);
  }
  sampling_->ReturnLeases(ended, [](auto) {});
  loop_.Run();
  EXPECT_THAT(failed_, testing::IsEmpty());
  EXPECT_EQ(Report(owner, leases), 0);
  EXPECT_TRUE(Submit(owner, leases[0]).accepted());
  EXPECT_TRUE(Submit(owner, leases[1]).accepted());
  // Its own bytes of what was taken are another's words.
  EXPECT_FALSE(Submit(thief, leases[0]).accepted());
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, AWorkerThatReportsAndGetsNowhereLosesItsLeasesAndGetsNoMore) {
  const std::string stuck = Register("stuck");
  Issue(1, 1);
  const auto held = Lease(stuck, 1);
  ASSERT_EQ(held.size(), 1u);
  for (int i = 0; i < 59; ++i) {
    Pass(absl::Seconds(1));
    EXPECT_EQ(Report(stuck, held), 0) << i;
  }
  Pass(absl::Seconds(2));
  EXPECT_EQ(Report(stuck, held), 1);
  EXPECT_THAT(Lease(stuck, 1), testing::IsEmpty());
  const std::string other = Register("other");
  EXPECT_EQ(Lease(other, 1).size(), 1u);
  ExpectAllAccountedFor();
}

TEST_F(SamplingFaults, AWorkerThatLoadsItsModelKeepsItsLeasesForTenMinutes) {
  const std::string worker = Register("loading");
  Issue(1, 1);
  auto held = Lease(worker, 1);
  ASSERT_EQ(held.size(), 1u);
  held[0].set_loading(true);
  for (int i = 0; i < 300; ++i) {
    Pass(absl::Seconds(1));
    ASSERT_EQ(Report(worker, held), 0) << i;
  }
  // Loaded, it has as long as any other for its first token.
  held[0].set_loading(false);
  for (int i = 0; i < 59; ++i) {
    Pass(absl::Seconds(1));
    ASSERT_EQ(Report(worker, held), 0) << i;
  }
  held[0].set_loading(true);
  int seconds = 359;
  while (Report(worker, held) == 0) {
    Pass(absl::Seconds(1));
    ASSERT_LT(++seconds, 700);
  }
  EXPECT_GT(seconds, 655);  // one that hangs in its loading is stuck all the same
  EXPECT_THAT(Lease(worker, 1), testing::IsEmpty());
  EXPECT_EQ(Lease(Register("other"), 1).size(), 1u);
  ExpectAllAccountedFor();
}

// A fleet that is taken away again and again says little about a sample; an error says more.
TEST_F(SamplingFaults, TenWorkersThatAreLostCostOneAttempt) {
  Issue(1, 1);
  for (int lost = 0; lost < 50; ++lost) {
    EXPECT_THAT(failed_, testing::IsEmpty()) << lost;
    ASSERT_EQ(Lease(Register("w"), 1).size(), 1u) << lost;  // whoever had this name before is lost
  }
  std::string worker = Register("w");
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_THAT(failed_[0].reason(), testing::HasSubstr("failed 50 times, at last: worker w was lost"));
  Issue(2, 1);
  v1::PolicySource newer;
  newer.mutable_version()->set_step(1);
  WriteBatch policy;
  sampling_->SetPolicy("job", newer, &policy);
  ASSERT_TRUE(store_.CommitAndWait(std::move(policy)).ok());
  for (int error = 0; error < 5; ++error) {
    EXPECT_EQ(failed_.size(), 1u) << error;
    const auto leases = Lease(worker, 1);
    ASSERT_EQ(leases.size(), 1u) << error;
    v1::ReturnLeasesRequest request;
    request.set_session_id(worker);
    v1::ReturnedLease* returned = request.add_leases();
    *returned->mutable_id() = leases[0].id();
    returned->set_attempt(leases[0].attempt());
    returned->set_error("out of memory");
    sampling_->ReturnLeases(request, [](auto) {});
    loop_.Run();
  }
  ASSERT_EQ(failed_.size(), 2u);
  EXPECT_THAT(failed_[1].reason(), testing::HasSubstr("failed 5 times, at last: out of memory"));
  ExpectAllAccountedFor();
}

// The loop stood still, and its clock with it; those who waited for leases have gone, and nobody has read that yet.
TEST_F(SamplingFaults, NothingIsLeasedToACallThatWasNotSeenToInTime) {
  const std::string worker = Register("w");
  v1::LeasePromptsRequest request;
  request.set_session_id(worker);
  request.set_max_samples(8);
  request.set_wait_ms(2000);
  std::vector<int> given;  // leases by call; -1: not answered
  std::vector<bool> gone;
  const auto ask = [&] {
    const size_t call = given.size();
    given.push_back(-1);
    gone.push_back(false);
    sampling_->LeasePrompts(
        request,
        [&given, call](absl::StatusOr<v1::LeasePromptsResponse> response) {
          ASSERT_TRUE(response.ok()) << response.status();
          given[call] = response->leases_size();
        },
        [&gone, call] { return static_cast<bool>(gone[call]); });
    loop_.Run();
  };
  ask();
  callers_clock_.Advance(absl::Seconds(9));
  // Of the calls that came meanwhile one was given up too: its end is read right behind it.
  ask();
  ask();
  Issue(1, 4);
  EXPECT_THAT(given, testing::ElementsAre(-1, -1, -1));
  gone[1] = true;
  Pass(absl::Milliseconds(400));
  EXPECT_THAT(given, testing::ElementsAre(0, 0, 4));
  ExpectAllAccountedFor();
}

}  // namespace
}  // namespace rlhf::coordinator
