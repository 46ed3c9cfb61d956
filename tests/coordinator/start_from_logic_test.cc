// Jobs that go on from another's checkpoint: where they begin, and what is refused.
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/jobs/checkpoint_chain.h"
#include "coordinator/jobs/start_from.h"
#include "tests/coordinator/ppo_driver_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

constexpr int kPromptsAStep = 2;

class StartFromTest : public PpoDriverTest {
 protected:
  // A job of six steps of two prompts, a checkpoint after every second one, of which retention keeps two.
  void TrainSixSteps(const std::function<void(v1::PpoSpec*)>& change = [](v1::PpoSpec*) {}) {
    Begin();
    policy_ = Publish("model", "config.json", "{\"policy\":1}");
    reward_ = Publish("model", "config.json", "{\"reward\":1}");
    PutJob([&](v1::PpoSpec* ppo) {
      ppo->set_steps(8);
      ppo->set_prompts_per_step(kPromptsAStep);
      ppo->set_checkpoint_every(2);
      ppo->mutable_kl()->set_adaptive(true);
      change(ppo);
    });
    v1::Job row = JobRow();
    row.mutable_spec()->mutable_retention()->set_checkpoints(2);
    (*row.mutable_resolved())["base"] = policy_;
    (*row.mutable_resolved())["rm"] = reward_;
    WriteBatch batch;
    batch.Put(Table::kJobs, "job", row.SerializeAsString());
    ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
    Recover();
    for (int64_t step = 1; step <= 6; ++step) TrainStep(step);
  }
  void TrainStep(int64_t step) {
    ASSERT_GE(Work(), kPromptsAStep);
    AskForBatch(step);
    ASSERT_TRUE(batch_.has_value() && batch_->ok());
    Measure();
    CommitStep(step);
    ASSERT_TRUE(committed_.has_value() && committed_->ok());
    if (step % 2 == 0) Checkpoint(step);
  }
  std::string Publish(const std::string& kind, const std::string& file, const std::string& content) {
    std::string digest;
    const Artifacts::Staging staging = process_->artifacts->NewStaging();
    EXPECT_TRUE(staging.make().ok());
    std::ofstream(staging.path + "/" + file) << content;
    process_->artifacts->PublishDirectory(staging.path, kind, "default", "job", [&](absl::StatusOr<v1::Artifact> made) {
      ASSERT_TRUE(made.ok()) << made.status();
      digest = made->digest();
    });
    process_->loop.Run();
    return digest;
  }
  void Checkpoint(int64_t step) {
    v1::ReportCheckpointRequest request;
    request.set_job_id("job");
    request.set_step(step);
    request.set_digest(Publish("checkpoint", "state", absl::StrCat("of step ", step)));
    checkpoints_[step] = request.digest();
    if (step == 2) Pin(request.digest());
    process_->jobs->ReportCheckpoint(request, [](absl::StatusOr<v1::ReportCheckpointResponse> response) {
      EXPECT_TRUE(response.ok()) << response.status();
    });
    process_->loop.Run();
  }
  void Pin(const std::string& digest) {
    v1::PinArtifactRequest request;
    request.set_digest(digest);
    request.set_pinned(true);
    process_->artifacts->Pin(request, nullptr,
                             [](const absl::StatusOr<v1::Artifact>& pinned) { EXPECT_TRUE(pinned.ok()); });
    process_->loop.Run();
  }
  // As somebody writes it who has the first job's file.
  v1::JobSpec Next(int64_t step) {
    v1::JobSpec spec = JobRow().spec();
    spec.clear_retention();
    spec.set_name("next");
    spec.mutable_start_from()->set_job("job");
    spec.mutable_start_from()->set_step(step);
    spec.mutable_ppo()->set_policy(policy_);
    spec.mutable_ppo()->set_reference(policy_);
    spec.mutable_ppo()->set_critic(reward_);
    spec.mutable_ppo()->set_prompts(JobRow().resolved().at("prompts"));
    spec.mutable_ppo()->mutable_scorer()->mutable_components(0)->mutable_reward_model()->set_model(reward_);
    return spec;
  }
  // The new job's id, or why there is none.
  std::string Submit(const v1::JobSpec& spec) {
    v1::ValidateJobRequest validate;
    *validate.mutable_spec() = spec;
    const v1::ValidateJobResponse validated = process_->jobs->Validate(validate);
    const std::string problems = JoinProblems({validated.problems().begin(), validated.problems().end()});
    v1::SubmitJobRequest request;
    request.set_request_id(absl::StrCat("request ", ++requests_));
    *request.mutable_spec() = spec;
    std::string answer = "none";
    process_->jobs->Submit("ada", request, [&answer](const absl::StatusOr<v1::SubmitJobResponse>& submitted) {
      answer = submitted.ok() ? submitted->job().id() : std::string(submitted.status().message());
    });
    process_->loop.Run();
    if (!problems.empty()) {
      EXPECT_EQ(answer, problems);
    }
    return answer;
  }
  // With a change of that file, the problem.
  std::string Changed(const std::function<void(v1::JobSpec*)>& change, int64_t step = 4) {
    v1::JobSpec spec = Next(step);
    change(&spec);
    return Submit(spec);
  }
  void Damaged(const std::string& id) {
    v1::FailTrainingRequest request;
    request.set_job_id(id);
    request.set_reason_code("CHECKPOINT_DAMAGED");
    request.set_reason("a bit flipped");
    process_->jobs->FailTraining(request, [](absl::StatusOr<v1::FailTrainingResponse>) {});
    process_->loop.Run();
  }

  std::string policy_, reward_;
  std::map<int64_t, std::string> checkpoints_;
  int requests_ = 0;
};

TEST_F(StartFromTest, AJobBeginsBehindTheCheckpoint) {
  TrainSixSteps();
  const v1::Job job = JobRow(Submit(Next(4)));
  EXPECT_EQ(job.spec().start_from().job(), "job");
  EXPECT_EQ(job.start().step(), 4);
  EXPECT_EQ(job.start().checkpoint(), checkpoints_[4]);
  EXPECT_EQ(job.checkpoint(), checkpoints_[4]);
  EXPECT_EQ(job.checkpoint_step(), 4);
  EXPECT_EQ(job.step(), 4);
  EXPECT_EQ(job.version().step(), 4);
  EXPECT_EQ(job.version().digest(), "weights 4");
  // Its first step has the prompts that the fifth one had there.
  EXPECT_EQ(job.issued_through_step(), 5);
  EXPECT_EQ(job.prompt_cursor(), 5 * kPromptsAStep);
  v1::SampleRow first;
  const auto row = rows_.Get(Table::kSamples, Ledger::RowKey(job.id(), {5, 0, 0}));
  ASSERT_TRUE(row.ok() && first.ParseFromString(*row)) << row.status();
  EXPECT_EQ(first.prompt_index(), PromptsOf(5).at(0));
  EXPECT_THAT(Messages(), testing::Contains(HasSubstr("goes on from step 4 of job")));
  // Nobody may take it away, and its own damage does not make the job begin anew.
  const auto sees = [](const std::string&) { return true; };
  EXPECT_FALSE(process_->jobs->CheckUnused(checkpoints_[4], sees).ok());
  Restart();
  EXPECT_FALSE(process_->jobs->CheckUnused(checkpoints_[4], sees).ok());
  EXPECT_EQ(JobRow(job.id()).version().digest(), "weights 4");
  EXPECT_EQ(JobRow(job.id()).issued_through_step(), 5);
  Damaged(job.id());
  EXPECT_EQ(JobRow(job.id()).state(), v1::FAILED);
  EXPECT_THAT(JobRow(job.id()).reason(),
              HasSubstr("the checkpoint of step 4 cannot be read (a bit flipped) and there"));
}

// The other job's retention lets it go, and it stays; what nobody starts from does not.
TEST_F(StartFromTest, TheCheckpointIsTheNewJobsToo) {
  TrainSixSteps([](v1::PpoSpec* ppo) { ppo->set_steps(12); });
  const auto there = [this](int64_t step) { return process_->artifacts->Resolve(checkpoints_[step], "default").ok(); };
  Submit(Next(4));
  for (const int64_t step : {7, 8, 9, 10}) TrainStep(step);
  EXPECT_TRUE(there(4));
  EXPECT_FALSE(there(6));
  EXPECT_TRUE(there(8));
}

// Among so many that jobs of years have left that they are looked at over several turns of the loop.
TEST_F(StartFromTest, AnEndedJobsCheckpointStaysTooAmongManyOthers) {
  TrainSixSteps([](v1::PpoSpec* ppo) { ppo->set_steps(12); });
  WriteBatch years;
  for (const char* before_and_behind : {"a", "z"}) {
    for (int64_t step = 1; step <= 2500; ++step)
      years.Put(Table::kMeta, CheckpointKey(before_and_behind, step), absl::StrCat("sha256:", step));
  }
  years.Put(Table::kMeta, CheckpointKey("y", 4), checkpoints_[4]);  // equal runs have equal checkpoints
  ASSERT_TRUE(rows_.CommitAndWait(std::move(years)).ok());
  const auto there = [this](int64_t step) { return process_->artifacts->Resolve(checkpoints_[step], "default").ok(); };
  for (const int64_t step : {7, 8, 9, 10}) TrainStep(step);
  EXPECT_TRUE(there(4));
  EXPECT_FALSE(there(6));
}

TEST_F(StartFromTest, WithoutAStepItIsTheNewestAndWithAPinnedOneThatOne) {
  TrainSixSteps();
  EXPECT_EQ(JobRow(Submit(Next(0))).start().step(), 6);
  // Retention has let it go, somebody has pinned it.
  const v1::Job job = JobRow(Submit(Next(2)));
  EXPECT_EQ(job.start().checkpoint(), checkpoints_[2]);
  EXPECT_EQ(job.prompt_cursor(), 3 * kPromptsAStep);
  // And one that goes on from where that one began.
  v1::JobSpec spec = Next(2);
  spec.mutable_start_from()->set_job(job.id());
  const v1::Job third = JobRow(Submit(spec));
  EXPECT_EQ(third.start().weights_digest(), "weights 2");
  EXPECT_EQ(third.prompt_cursor(), 3 * kPromptsAStep);
}

TEST_F(StartFromTest, WhatTheStateCannotBeUsedForIsRefused) {
  TrainSixSteps();
  EXPECT_THAT(Submit(Next(3)),
              HasSubstr("start_from.step: expected a step of which job has a checkpoint, found 3; there are those of "
                        "6, 4, 2"));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_start_from()->set_job("nobody"); }),
              HasSubstr("start_from.job: expected a job of the project default, found \"nobody\""));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_start_from()->clear_job(); }), HasSubstr("start_from.job"));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_ppo()->set_steps(4); }),
              HasSubstr("ppo.steps: expected more than 4, where it starts from, found 4"));
  EXPECT_THAT(Changed([this](auto* s) { s->mutable_ppo()->set_policy(reward_); }),
              HasSubstr(absl::StrCat("ppo.policy: expected ", policy_, " as in job")));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_ppo()->set_precision(v1::BFLOAT16); }),
              HasSubstr("ppo.precision: expected FLOAT32 as in job"));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_ppo()->mutable_lora()->set_rank(2); }),
              HasSubstr("ppo.lora: expected none as in job"));
  EXPECT_THAT(Changed([](auto* s) { s->mutable_ppo()->mutable_kl()->set_coefficient(0.2); }),
              HasSubstr("ppo.kl.coefficient: expected 0.05 as in job, found 0.2: an adaptive coefficient goes on"));
  EXPECT_THAT(Changed([](auto* s) {
                s->mutable_ppo()->set_epochs(1);
                s->mutable_ppo()->mutable_policy_optimizer()->set_schedule(v1::LINEAR);
              }),
              HasSubstr("ppo.epochs: expected 4 updates a step"));
  EXPECT_THAT(Changed([](auto* s) {
                s->mutable_ppo()->set_critic_warmup_steps(2);
                s->mutable_ppo()->mutable_policy_optimizer()->set_schedule(v1::LINEAR);
              }),
              HasSubstr("ppo.critic_warmup_steps: expected 0 as in job, found 2"));
  EXPECT_THAT(Changed([this](auto* s) {
                s->clear_ppo();
                s->mutable_sample()->set_model(policy_);
                s->mutable_sample()->set_prompts(JobRow().resolved().at("prompts"));
              }),
              HasSubstr("start_from: expected a job of the kind sft, reward_model or ppo"));
}

TEST_F(StartFromTest, AJobOfAnotherProjectIsAsOneThatThereIsNot) {
  TrainSixSteps();
  const v1::JobSpec spec = Next(4);
  v1::Job row = JobRow();
  row.mutable_spec()->set_project("theirs");
  WriteBatch batch;
  batch.Put(Table::kJobs, "job", row.SerializeAsString());
  ASSERT_TRUE(rows_.CommitAndWait(std::move(batch)).ok());
  Restart();
  EXPECT_THAT(Submit(spec), HasSubstr("start_from.job: expected a job of the project default, found \"job\""));
}

TEST_F(StartFromTest, AHeadGoesOnWithItsCriterion) {
  Begin();
  v1::Job from;
  from.set_id("first");
  v1::RewardModelSpec* there = from.mutable_spec()->mutable_reward_model();
  there->set_criterion_heads(true);
  (*there->mutable_criteria())["true"] = 1;
  (*there->mutable_criteria())["clear"] = 1;
  v1::JobSpec spec = from.spec();
  spec.mutable_start_from()->set_job("first");
  spec.mutable_reward_model()->mutable_criteria()->erase("true");
  (*spec.mutable_reward_model()->mutable_criteria())["kind"] = 1;
  std::vector<v1::SpecProblem> problems;
  FindStart(&from, {}, &rows_, process_->artifacts.get(), &spec, &problems);
  EXPECT_THAT(JoinProblems(problems),
              HasSubstr("reward_model.criterion_heads: expected heads of clear, true as in first"));
}

TEST_F(StartFromTest, OtherSettingsMayBeOthers) {
  TrainSixSteps();
  const std::string other = Publish("model", "config.json", "{\"another reward\":1}");
  const v1::Job job = JobRow(Changed([&](v1::JobSpec* s) {
    v1::PpoSpec* ppo = s->mutable_ppo();
    ppo->mutable_kl()->set_adaptive(false);
    ppo->mutable_kl()->set_coefficient(0.2);
    ppo->mutable_policy_optimizer()->set_learning_rate(1e-7);
    ppo->set_epochs(1);
    ppo->set_prompts_per_step(4);
    s->mutable_learners()->set_ranks(2);
    s->mutable_learners()->set_shard_optimizer_state(true);
    // A scorer's first reward model would be the critic, whose state is another model's.
    ppo->mutable_scorer()->mutable_components(0)->mutable_reward_model()->set_model(other);
    ppo->clear_critic();
  }));
  EXPECT_EQ(job.start().step(), 4);
  EXPECT_EQ(job.spec().ppo().critic(), reward_);
  EXPECT_EQ(job.prompt_cursor(), 4 * kPromptsAStep + 4);
}

}  // namespace
}  // namespace rlhf::coordinator
