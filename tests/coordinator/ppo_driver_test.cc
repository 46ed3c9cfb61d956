// When a PPO job hands out, commits and issues its steps: halts, the monitor, early stops, crashes between slices.
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/ppo_driver_fixture.h"

namespace rlhf::coordinator {
namespace {

TEST_F(PpoDriverTest, ACommitWaitsForWhatTheMonitorSaysAndStopsByIt) {
  Begin();
  PutJob([](v1::PpoSpec* ppo) {
    ppo->mutable_monitor()->set_action(v1::MONITOR_STOP);
    ppo->mutable_monitor()->set_window(1);
    ppo->mutable_monitor()->set_max_repetition(0.3);
  });
  Recover();
  Work();
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  ASSERT_EQ((**batch_)->size(), static_cast<size_t>(kPromptsPerStep));
  CommitStep(1);
  EXPECT_FALSE(committed_.has_value());
  EXPECT_EQ(JobRow().version().step(), 0);
  Measure();
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  EXPECT_TRUE((*committed_)->stop());  // every second answer repeats one token
  EXPECT_EQ(JobRow().version().step(), 1);
  EXPECT_EQ(JobRow().total_steps(), 1);  // in the commit's own transaction
  ExpectObserved(1, ***batch_);
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, ThatTheContextCutsAnswersIsToldOnceAndCountedAtEveryStep) {
  Begin();
  PutJob();
  Recover();
  for (int step = 1; step <= 3; ++step) {
    cut_ = step > 1;
    Work();
    AskForBatch(step);
    ASSERT_TRUE(batch_.has_value() && batch_->ok());
    Measure();
    CommitStep(step);
    ASSERT_TRUE(committed_.has_value() && committed_->ok());
    ExpectObserved(step, ***batch_);
    v1::MonitorStep seen;
    ASSERT_TRUE(
        seen.ParseFromString(*rows_.Get(Table::kMeta, KeyOf(MonitorStepPrefix("job"), {static_cast<uint64_t>(step)}))));
    EXPECT_EQ(seen.values().at("cut_by_context"), step > 1 ? 1 : 0);
  }
  const std::string told = "100 % of the answers ended before max_new_tokens (64)";
  EXPECT_THAT(Messages(), testing::Contains(testing::HasSubstr("step 2: " + told)));
  EXPECT_THAT(Messages(), testing::Not(testing::Contains(testing::HasSubstr("step 3: " + told))));
}

TEST_F(PpoDriverTest, ModelsThatReadThePolicysTokensHaveItsTokenizer) {
  Begin();
  const auto publish = [&](const std::string& tokenizer) {
    std::string digest;
    const Artifacts::Staging staging = process_->artifacts->NewStaging();
    EXPECT_TRUE(staging.make().ok());
    std::ofstream(staging.path + "/tokenizer.json") << tokenizer;
    process_->artifacts->PublishDirectory(staging.path, "data", "default", "test",
                                          [&](absl::StatusOr<v1::Artifact> made) {
                                            ASSERT_TRUE(made.ok()) << made.status();
                                            digest = made->digest();
                                          });
    process_->loop.Run();
    return digest;
  };
  const std::string mine = publish(R"({"model": {"vocab": {"a": 0, "b": 1}}})"),
                    alike = publish(R"({"model": {"vocab": {"b": 1, "a": 0}}})"),
                    other = publish(R"({"model": {"vocab": {"a": 0, "c": 1}}})");
  const auto state = [&](const std::string& reference, const std::string& critic, v1::AdvantageEstimator advantage,
                         int64_t step = 0) {
    PutJob([&](v1::PpoSpec* ppo) {
      ppo->set_policy("mine");
      ppo->set_reference("start");
      ppo->set_advantage(advantage);
      if (advantage == v1::GAE) ppo->set_critic("values");
    });
    v1::Job job = JobRow();
    (*job.mutable_resolved())["mine"] = mine;
    (*job.mutable_resolved())["start"] = reference;
    (*job.mutable_resolved())["values"] = critic;
    job.mutable_version()->set_step(step);
    Store(std::move(job));
    Restart();
    return JobRow();
  };
  v1::Job job = state(alike, other, v1::GAE);
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.reason_code(), "BAD_DATA");
  EXPECT_THAT(job.reason(), testing::HasSubstr("ppo.critic: expected a model with the tokens of ppo.policy, mine, "
                                               "whose ids it is given, found values with others (token 1 is \"b\" of "
                                               "one and \"c\" of the other)"));
  job = state(other, alike, v1::GAE);
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_THAT(job.reason(), testing::HasSubstr("ppo.reference: expected"));
  EXPECT_EQ(state(alike, other, v1::REINFORCE_BASELINE).state(), v1::RUNNING) << "it has no critic";
  EXPECT_EQ(state(alike, other, v1::GAE, /*step=*/1).state(), v1::RUNNING) << "it has trained already";
}

TEST_F(PpoDriverTest, AfterARestartTheMonitorReadsTheBatchFromTheStore) {
  Begin();
  PutJob();
  Recover();
  Work();
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  ASSERT_TRUE(process_->payloads->Sync().ok());
  Restart();
  CommitStep(1);
  EXPECT_FALSE(committed_.has_value());
  Measure();
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  EXPECT_EQ(JobRow().version().step(), 1);
  ExpectObserved(1, ***batch_);
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, TheResultHasTheLastStepsMetricsAfterARestartToo) {
  Begin();
  PutJob([](v1::PpoSpec* ppo) { ppo->set_steps(1); });
  Recover();
  Work();
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  Measure();
  CommitStep(1);
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  ASSERT_TRUE(process_->payloads->Sync().ok());
  Restart();  // while the learner writes the model
  std::optional<absl::StatusOr<v1::FinishTrainingResponse>> finished;
  v1::FinishTrainingRequest request;
  request.set_job_id("job");
  process_->jobs->FinishTraining(
      request, [&](absl::StatusOr<v1::FinishTrainingResponse> response) { finished = std::move(response); });
  process_->loop.Run();
  ASSERT_TRUE(finished.has_value());
  ASSERT_TRUE(finished->ok()) << finished->status();
  const v1::Job job = JobRow();
  ASSERT_TRUE(job.result().metrics().contains("kl"));
  EXPECT_EQ(job.result().metrics().at("kl").value(), 0.25);
  EXPECT_TRUE(job.result().metrics().contains("monitor/score"));
  EXPECT_FALSE(job.result().metrics().contains("samples_per_second"));
}

TEST_F(PpoDriverTest, AHaltHandsOutNoBatchButThatOfAStepThatHasBegun) {
  Begin();
  PutJob();
  Recover();
  Work();
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  const StepBatch first = **batch_;
  Halt(true);
  AskForBatch(1);  // another rank of the same group
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  EXPECT_EQ(**batch_, first);
  Measure();
  CommitStep(1);
  ASSERT_TRUE(committed_.has_value());
  EXPECT_EQ(ReasonOf(committed_->status()), v1::SERVICE_HALTED);
  Halt(false);
  CommitStep(1);
  ASSERT_TRUE(committed_.has_value() && committed_->ok());

  Halt(true);
  Work();
  AskForBatch(2);
  process_->jobs->Tick();
  process_->loop.Run();
  EXPECT_FALSE(batch_.has_value());
  Halt(false);
  process_->jobs->Tick();
  process_->loop.Run();
  ASSERT_TRUE(batch_.has_value());
  EXPECT_TRUE(batch_->ok()) << batch_->status();
}

TEST_F(PpoDriverTest, ACommitThatWaitsEndsWithItsJobAndARepeatedOneIsAnsweredAlike) {
  Begin();
  PutJob();
  Recover();
  Work();
  AskForBatch(1);
  CommitStep(1);
  CommitStep(1);  // the answer was lost: both wait now
  EXPECT_FALSE(committed_.has_value());
  Measure();
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  EXPECT_EQ((*committed_)->version().step(), 1);
  EXPECT_EQ(JobRow().version().step(), 1);

  v1::CommitStepRequest request;
  request.set_job_id("job");
  request.set_step(2);
  request.set_weights_digest("weights 2");
  committed_.reset();
  process_->jobs->CommitStep(
      request, [this](absl::StatusOr<v1::CommitStepResponse> response) { committed_ = std::move(response); });
  process_->loop.Run();
  EXPECT_FALSE(committed_.has_value());
  v1::CancelJobRequest cancel;
  cancel.set_job_id("job");
  process_->jobs->Cancel("test", cancel, [](absl::StatusOr<v1::Job> job) { EXPECT_TRUE(job.ok()) << job.status(); });
  process_->loop.Run();
  ASSERT_TRUE(committed_.has_value());
  EXPECT_TRUE(absl::IsAborted(committed_->status())) << committed_->status();
  EXPECT_EQ(JobRow().version().step(), 1);
  Measure();  // what was measured for it comes too late
}

// How many sample rows were written when the process was killed, in the first step and in the second one.
class KilledBetweenSlices : public PpoDriverTest, public testing::WithParamInterface<int> {};

TEST_P(KilledBetweenSlices, AStepIsIssuedToItsEndAfterTheRestart) {
  Begin();
  PutJob();
  process_->store.CrashAfterSampleRows(GetParam());
  Recover();
  ASSERT_TRUE(process_->store.crashed());
  ASSERT_EQ(PromptsOf(1).size(), static_cast<size_t>(GetParam()));
  EXPECT_EQ(JobRow().issued_through_step(), 0);
  Restart();
  ExpectIssued(1);
  ExpectAllAccountedFor();

  EXPECT_EQ(Work(), kPromptsPerStep);
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  EXPECT_EQ((**batch_)->size(), static_cast<size_t>(kPromptsPerStep));
  Measure();
  // The step's own rows and the next one's first slice are the commit's transaction.
  process_->store.CrashAfterSampleRows(kPromptsPerStep + GetParam());
  CommitStep(1);
  ASSERT_TRUE(process_->store.crashed());
  const bool durable = GetParam() > 0;
  EXPECT_EQ(committed_.has_value(), durable);  // what is answered is durable
  EXPECT_EQ(JobRow().version().step(), durable ? 1 : 0);
  EXPECT_EQ(PromptsOf(2).size(), static_cast<size_t>(GetParam()));
  ASSERT_TRUE(process_->payloads->Sync().ok());
  Restart();
  if (durable) {
    ExpectIssued(2);
  } else {
    ExpectIssued(1);
  }
  ExpectAllAccountedFor();
}

INSTANTIATE_TEST_SUITE_P(Rows, KilledBetweenSlices, testing::Values(0, 256, 512));

TEST_F(PpoDriverTest, AStepOfWhichPartIsIssuedIsNotHandedOut) {
  Begin();
  PutJob();
  process_->store.Hold(true);  // written, but the process does not hear of it yet
  Recover();
  EXPECT_EQ(PromptsOf(1).size(), 256u);
  process_->store.Hold(false);
  EXPECT_EQ(Work(), 256);
  AskForBatch(1);
  EXPECT_TRUE(process_->sampling->StepScored("job", 1));  // as far as it exists
  EXPECT_FALSE(batch_.has_value());
  process_->store.Release();
  process_->loop.Run();
  ExpectIssued(1);
  EXPECT_FALSE(batch_.has_value());
  EXPECT_EQ(Work(), kPromptsPerStep - 256);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  EXPECT_EQ((**batch_)->size(), static_cast<size_t>(kPromptsPerStep));
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, ARefusedStepGetsPromptsAfterThoseOfAStepThatIsBeingIssued) {
  Begin();
  PutJob([](v1::PpoSpec* ppo) { ppo->set_max_policy_lag(1); });
  Recover();
  while (Work() > 0) {
  }
  AskForBatch(1);
  Measure();
  process_->store.Hold(true);
  CommitStep(1);  // and the first slice of step 3
  process_->store.Hold(false);
  AskForBatch(2);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  EXPECT_EQ(PromptsOf(3).size(), 256u);
  v1::RefuseStepRequest refuse;
  refuse.set_job_id("job");
  refuse.set_step(2);
  refuse.set_reason("a loss that is not finite");
  process_->jobs->RefuseStep(
      refuse, [](absl::StatusOr<v1::RefuseStepResponse> response) { EXPECT_TRUE(response.ok()) << response.status(); });
  process_->store.Release();
  process_->loop.Run();
  const std::map<int, int64_t> third = PromptsOf(3), again = PromptsOf(2);
  EXPECT_EQ(third.size(), static_cast<size_t>(kPromptsPerStep));
  EXPECT_EQ(again.size(), static_cast<size_t>(kPromptsPerStep));
  for (const auto& [ordinal, prompt] : third) EXPECT_EQ(prompt, 2 * kPromptsPerStep + ordinal);
  EXPECT_EQ(JobRow().issued_through_step(), 3);
  EXPECT_EQ(JobRow().prompt_cursor(), 4 * kPromptsPerStep);
  ExpectAllAccountedFor();
}

}  // namespace
}  // namespace rlhf::coordinator
