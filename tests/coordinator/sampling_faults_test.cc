// Leases under faults, with workers and time made by the test: duplicates, late and forged results, hedged stragglers,
// workers that report and get nowhere.
#include <functional>
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/ledger.h"
#include "coordinator/sampling.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kHeartbeat = absl::Milliseconds(500), kLease = absl::Seconds(9);

class NoRewardServer final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    done(absl::UnavailableError("none here"));
  }
};

class SamplingFaults : public testing::Test, public SamplingListener {
 protected:
  SamplingFaults() {
    payloads_ = *OpenPayloadStore(dir_.path());
    SamplingOptions options;
    options.lease = kLease;
    sampling_ = MakeSampling(&loop_, &store_, payloads_.get(), fleet_.get(), &reward_, options);
    SamplingPlan plan;
    plan.job_id = "job";
    auto prompts = std::make_shared<std::vector<v1::Prompt>>();
    for (int i = 0; i < 8; ++i) prompts->emplace_back().set_text(absl::StrCat("prompt ", i));
    plan.prompts = prompts;
    EXPECT_TRUE(sampling_->AddJob(std::move(plan), this).ok());
    loop_.Run();
  }
  void OnStepScored(const std::string&, int64_t step) override { scored_.push_back(step); }
  void OnSampleFailed(const std::string&, const v1::SampleRow& row) override { failed_.push_back(row); }

  std::string Register(const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_ROLLOUT_WORKER);
    request.set_instance_id(instance);
    request.set_protocol_version(1);
    std::string session;
    fleet_->Register(request, [&](absl::StatusOr<v1::RegisterResponse> response) { session = response->session_id(); });
    loop_.Run();
    return session;
  }
  void Issue(int64_t step, int prompts) {
    WriteBatch batch;
    sampling_->IssueStep("job", step, next_prompt_, prompts, &batch);
    next_prompt_ += prompts;
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
    loop_.Run();
  }
  // What the worker is leased now, without waiting.
  std::vector<v1::LeaseProgress> Lease(const std::string& session, int most) {
    v1::LeasePromptsRequest request;
    request.set_session_id(session);
    request.set_max_samples(most);
    std::vector<v1::LeaseProgress> out;
    sampling_->LeasePrompts(request, [&](absl::StatusOr<v1::LeasePromptsResponse> response) {
      if (!response.ok()) return;
      for (const v1::PromptLease& lease : response->leases()) {
        for (const v1::SampleLease& sample : lease.samples()) {
          v1::LeaseProgress& held = out.emplace_back();
          held.mutable_id()->set_job_id(lease.job_id());
          held.mutable_id()->set_step(lease.step());
          held.mutable_id()->set_ordinal(lease.ordinal());
          held.mutable_id()->set_index(sample.index());
          held.set_attempt(sample.attempt());
        }
      }
    });
    sampling_->Tick();  // answers who has waited long enough, here not at all
    loop_.Run();
    return out;
  }
  // A token below 0: a sample with none.
  v1::SampleVerdict Submit(const std::string& session, const v1::LeaseProgress& lease, int token = 7,
                           const std::vector<float>& log_kept_mass = {}) {
    v1::SubmitSamplesRequest request;
    request.set_session_id(session);
    v1::Sample& sample = *request.add_samples();
    *sample.mutable_id() = lease.id();
    sample.set_attempt(lease.attempt());
    if (token >= 0) sample.add_response_tokens(token);
    sample.add_behaviour_log_probs(-1);
    sample.mutable_log_kept_mass()->Assign(log_kept_mass.begin(), log_kept_mass.end());
    v1::SampleVerdict verdict;
    sampling_->SubmitSamples(request, [&](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      verdict = response->verdicts(0);
    });
    loop_.Run();
    return verdict;
  }
  // The worker's heartbeat; returns how many of its leases are not its any more.
  int Report(const std::string& session, const std::vector<v1::LeaseProgress>& leases) {
    v1::HeartbeatRequest request;
    request.set_session_id(session);
    for (const v1::LeaseProgress& lease : leases) *request.add_progress() = lease;
    int revoked = -1;
    fleet_->Heartbeat(request, [&](absl::StatusOr<v1::HeartbeatResponse> response) {
      if (response.ok()) revoked = response->revoked_size();
    });
    loop_.Run();
    return revoked;
  }
  void Pass(absl::Duration time) {
    clock_.Advance(time);
    fleet_->Tick();
    sampling_->Tick();
    loop_.Run();
  }
  // What a check says whose rows and payloads are read now, after `meanwhile`.
  absl::StatusOr<Sampling::Findings> Findings(
      const std::function<void()>& meanwhile = [] {}, const std::function<bool()>& gone = nullptr) {
    QueuedBackground thread;
    std::optional<absl::StatusOr<Sampling::Findings>> findings;
    sampling_->Check("job", &thread, gone,
                     [&](absl::StatusOr<Sampling::Findings> found) { findings = std::move(found); });
    meanwhile();
    loop_.Run();
    EXPECT_FALSE(findings.has_value());
    thread.RunAll();
    loop_.Run();
    return findings.value_or(absl::InternalError("no answer"));
  }
  // Its violations, where all counts were compared.
  std::vector<std::string> Check() {
    const absl::StatusOr<Sampling::Findings> findings = Findings();
    if (!findings.ok()) return {findings.status().ToString()};
    EXPECT_THAT(findings->notes, testing::IsEmpty());
    return findings->violations;
  }
  void ExpectAllAccountedFor() { EXPECT_THAT(Check(), testing::IsEmpty()); }

  ScratchDir dir_;
  FakeClock clock_;
  ManualLoop loop_{&clock_};
  EdgeMemoryStore store_;
  std::unique_ptr<PayloadStore> payloads_;
  std::unique_ptr<Fleet> fleet_ = MakeFleet(&loop_, kHeartbeat, kLease);
  NoRewardServer reward_;
  std::unique_ptr<Sampling> sampling_;
  std::vector<int64_t> scored_;
  std::vector<v1::SampleRow> failed_;
  int64_t next_prompt_ = 0;
};

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

TEST_F(SamplingFaults, TheFirstOfTwoAttemptsWinsAndTheOtherIsHarmless) {
  const std::string slow = Register("slow"), quick = Register("quick");
  Issue(1, 16);
  const auto first = Lease(slow, 1);
  ASSERT_EQ(first.size(), 1u);
  std::vector<v1::LeaseProgress> rest;
  while (rest.size() < 15) {
    const auto more = Lease(quick, 15);
    ASSERT_FALSE(more.empty());
    rest.insert(rest.end(), more.begin(), more.end());
  }
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
  std::vector<v1::LeaseProgress> rest;
  while (rest.size() < 15) {
    const auto more = Lease(quick, 15);
    ASSERT_FALSE(more.empty());
    rest.insert(rest.end(), more.begin(), more.end());
  }
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
  std::vector<v1::LeaseProgress> rest;
  while (rest.size() < 15) {
    const auto more = Lease(quick, 15);
    ASSERT_FALSE(more.empty());
    rest.insert(rest.end(), more.begin(), more.end());
  }
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
