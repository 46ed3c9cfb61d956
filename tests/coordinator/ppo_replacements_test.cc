// A PPO job whose samples fail: it ends, or other prompts take their places.
#include <map>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/ppo_driver_fixture.h"

namespace rlhf::coordinator {
namespace {

void ReplacePrompts(v1::PpoSpec* ppo) {
  ppo->set_on_failed(v1::FAILED_SAMPLE_REPLACES_PROMPT);
  ppo->set_samples_per_prompt(2);
}
// Whether it is the prompt that the step was issued with.
bool First(const v1::PromptLease& lease) {
  return lease.samples(0).attempt() == 1;
}

TEST_F(PpoDriverTest, AFailedSampleEndsTheJobByDefault) {
  Begin();
  PutJob();
  Recover();
  EXPECT_EQ(JobRow().spec().ppo().on_failed(), v1::FAILED_SAMPLE_ENDS_JOB);
  Work([](const v1::PromptLease& lease) { return lease.ordinal() == 3; });
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "SAMPLE_FAILED");
  EXPECT_THAT(JobRow().reason(), testing::HasSubstr("sample 1/3/0: too long"));
}

// Which prompt takes whose place is a matter of their order, not of who failed first.
TEST_F(PpoDriverTest, PromptsThatFailAreReplacedInTheStepsOrder) {
  Begin();
  PutJob(ReplacePrompts);
  Recover();
  std::map<int, std::string> texts;
  const auto refuses = [&](const v1::PromptLease& lease) {
    texts.try_emplace(lease.ordinal(), lease.prompt().id());
    return First(lease) && (lease.ordinal() == 3 || lease.ordinal() == 9);
  };
  EXPECT_EQ(Work(refuses), 2 * (kPromptsPerStep - 2));
  EXPECT_EQ(JobRow().state(), v1::RUNNING) << JobRow().reason();
  EXPECT_EQ(PromptsOf(1)[3], kPromptsPerStep);
  EXPECT_EQ(PromptsOf(1)[9], kPromptsPerStep + 1);
  EXPECT_EQ(PromptsOf(1)[4], 4);
  EXPECT_EQ(JobRow().prompt_cursor(), kPromptsPerStep + 2);
  // The file's prompts begin anew.
  EXPECT_THAT(
      Messages(),
      testing::IsSupersetOf(
          {absl::StrCat("step 1: prompt ", texts[3], " failed: too long; prompt ", texts[0], " takes its place"),
           absl::StrCat("step 1: prompt ", texts[9], " failed: too long; prompt ", texts[1], " takes its place")}));
  ExpectAllAccountedFor();
  AskForBatch(1);
  EXPECT_FALSE(batch_.has_value());
  EXPECT_EQ(Work(), 4);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  ASSERT_EQ((**batch_)->size(), 2u * kPromptsPerStep);
  EXPECT_EQ((***batch_)[6].prompt().id(), texts[0]);
  EXPECT_EQ((***batch_)[6].attempt(), 2);
  EXPECT_EQ(process_->sampling->Counts("job").failed(), 4);
  Measure();
  CommitStep(1);
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  EXPECT_EQ(PromptsOf(2)[0], kPromptsPerStep + 2);
  ExpectAllAccountedFor();
}

// One of a prompt's samples failed; the other one was scored.
TEST_F(PpoDriverTest, AReplacedPromptTakesItsOtherSamplesWithIt) {
  Begin();
  PutJob(ReplacePrompts);
  process_->rewards.refuses = [](const v1::Sample& sample) {
    return sample.id().ordinal() == 3 && sample.id().index() == 1 && sample.attempt() == 1;
  };
  Recover();
  EXPECT_EQ(Work(), 2 * kPromptsPerStep);
  EXPECT_EQ(PromptsOf(1)[3], kPromptsPerStep);
  const v1::LedgerCounts counts = process_->sampling->Counts("job");
  EXPECT_EQ(counts.failed(), 2);
  EXPECT_EQ(counts.queued(), 2);
  ExpectAllAccountedFor();
  EXPECT_EQ(Work(), 2);
  AskForBatch(1);
  EXPECT_TRUE(batch_.has_value() && batch_->ok());
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, APromptThatFailedBeforeARestartIsReplacedAfterIt) {
  Begin();
  PutJob(ReplacePrompts);
  Recover();
  // The failure itself is written, nothing after it.
  const int64_t rows = 2 * kPromptsPerStep;
  const auto refuses = [](const v1::PromptLease& lease) { return First(lease) && lease.ordinal() == 3; };
  // Leased, generated and scored: three rows each; the two that fail, leased and failed.
  process_->store.CrashAfterSampleRows(3 * (rows - 2) + 2 * 2);
  Work(refuses);
  ASSERT_TRUE(process_->store.crashed());
  EXPECT_EQ(PromptsOf(1)[3], 3);
  ASSERT_TRUE(process_->payloads->Sync().ok());
  Restart();
  EXPECT_EQ(PromptsOf(1)[3], kPromptsPerStep);
  EXPECT_EQ(JobRow().prompt_cursor(), kPromptsPerStep + 1);
  ExpectAllAccountedFor();
  EXPECT_EQ(Work(), 2);
  AskForBatch(1);
  EXPECT_TRUE(batch_.has_value() && batch_->ok());
}

// Of such a step no sample is open: it is found by those that failed.
TEST_F(PpoDriverTest, AStepThatFailedWholeBeforeARestartIsReplacedAfterIt) {
  Begin();
  PutJob([](v1::PpoSpec* ppo) {
    ReplacePrompts(ppo);
    ppo->set_prompts_per_step(1);
  });
  Recover();
  process_->store.CrashAfterSampleRows(2 + 2);  // leased and failed
  Work(First);
  ASSERT_TRUE(process_->store.crashed());
  Restart();
  EXPECT_EQ(PromptsOf(1)[0], 1);
  ExpectAllAccountedFor();
  EXPECT_EQ(Work(), 2);
  AskForBatch(1);
  EXPECT_TRUE(batch_.has_value() && batch_->ok());
}

TEST_F(PpoDriverTest, AStepOfWhichPartIsIssuedWaitsWithItsReplacements) {
  Begin();
  PutJob(ReplacePrompts);
  process_->store.Hold(true);  // written, but the process does not hear of it yet
  Recover();
  process_->store.Hold(false);
  const auto refuses = [](const v1::PromptLease& lease) {
    return First(lease) && (lease.ordinal() == 3 || lease.ordinal() == 500);
  };
  EXPECT_EQ(Work(refuses), 254);  // a slice
  EXPECT_EQ(PromptsOf(1)[3], 3);
  process_->store.Release();
  process_->loop.Run();
  ExpectIssued(1);
  Work(refuses);
  EXPECT_EQ(PromptsOf(1)[3], kPromptsPerStep);
  EXPECT_EQ(PromptsOf(1)[500], kPromptsPerStep + 1);
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, AfterAnEarlyStopNothingIsReplaced) {
  Begin();
  PutJob([](v1::PpoSpec* ppo) {
    ReplacePrompts(ppo);
    ppo->set_max_policy_lag(1);
  });
  Recover();
  const auto prompt = [](int ordinal) {
    return [ordinal](const v1::PromptLease& lease) { return lease.step() == 2 && lease.ordinal() == ordinal; };
  };
  Work(prompt(3), prompt(9));
  EXPECT_EQ(process_->sampling->Counts("job").failed(), 2);
  AskForBatch(1);
  ASSERT_TRUE(batch_.has_value() && batch_->ok());
  Measure();
  CommitStep(1, /*stop=*/true);
  ASSERT_TRUE(committed_.has_value() && committed_->ok());
  // What it kept comes late.
  v1::SubmitSamplesRequest late;
  late.set_session_id(worker_);
  v1::Sample* sample = late.add_samples();
  sample->mutable_id()->set_job_id("job");
  sample->mutable_id()->set_step(2);
  sample->mutable_id()->set_ordinal(9);
  sample->set_attempt(1);
  process_->sampling->SubmitSamples(late, [](absl::StatusOr<v1::SubmitSamplesResponse> response) {
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->verdicts(0).reason(), v1::STALE_ATTEMPT);
  });
  process_->loop.Run();
  EXPECT_EQ(JobRow().total_steps(), 1);
  const v1::LedgerCounts counts = process_->sampling->Counts("job");
  EXPECT_EQ(counts.queued() + counts.leased(), 0);
  EXPECT_EQ(counts.issued(), 4 * kPromptsPerStep);
  EXPECT_THAT(Messages(), testing::Not(testing::Contains(testing::HasSubstr("takes its place"))));
  ExpectAllAccountedFor();
}

TEST_F(PpoDriverTest, AJobWhosePromptsAllFailEnds) {
  Begin();
  PutJob(ReplacePrompts);
  Recover();
  Work([](const v1::PromptLease&) { return true; });
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "SAMPLE_FAILED");
  EXPECT_THAT(JobRow().reason(), testing::HasSubstr("600 prompts in a row failed, and there are 600; the last: too"));
}

TEST_F(PpoDriverTest, PromptsAreNotReplacedForEver) {
  Begin();
  PutJob(ReplacePrompts);
  Recover();
  // One of the step is good; of those that come for the others, none is.
  const auto refuses = [](const v1::PromptLease& lease) { return !First(lease) || lease.ordinal() > 0; };
  Work(refuses);
  EXPECT_EQ(JobRow().prompt_cursor(), 2 * kPromptsPerStep - 1);
  Work(refuses);
  EXPECT_EQ(JobRow().state(), v1::RUNNING);  // 599 of 600
  ExpectAllAccountedFor();
  Work(refuses);
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "SAMPLE_FAILED");
}

}  // namespace
}  // namespace rlhf::coordinator
