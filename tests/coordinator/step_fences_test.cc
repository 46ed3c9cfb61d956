// What a PPO job refuses of its learners, and what becomes of it when a step is trained again: over the job table,
// sampling and a store in memory.
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/job_state.h"
#include "common/process.h"
#include "common/status_util.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/store/keys.h"
#include "tests/coordinator/jobs_process.h"
#include "tests/coordinator/stored_jobs.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

constexpr int kPrompts = 4;

class EqualRewards final : public RewardClient {
 public:
  void Score(const std::string&, v1::ScoreRequest request, absl::Duration,
             absl::AnyInvocable<void(absl::StatusOr<v1::ScoreResponse>)> done) override {
    v1::ScoreResponse response;
    for (const v1::Sample& sample : request.samples()) {
      v1::SampleScore* score = response.add_scores();
      *score->mutable_id() = sample.id();
      for (int i = 0; i < sample.response_tokens_size(); ++i) score->mutable_score()->add_reference_log_probs(-1);
    }
    done(std::move(response));
  }
};

class StepFencesTest : public StoredJobsTest {
 protected:
  using Batch = std::shared_ptr<const std::vector<v1::Sample>>;

  void Begin() {
    process_ = std::make_unique<JobsProcess>(&rows_, &clock_, dir_.path(), &rewards_);
    ASSERT_TRUE(process_->oversight->Recover().ok());
    ASSERT_TRUE(process_->artifacts->Recover().ok());
    worker_ = process_->Register(v1::ROLE_ROLLOUT_WORKER, "rollout-0");
    process_->Register(v1::ROLE_REWARD_SERVER, "reward-0");
  }
  // As after SIGKILL: only what the store holds is left.
  void Restart() {
    ASSERT_TRUE(process_->payloads->Sync().ok());
    process_.reset();
    Begin();
    ASSERT_TRUE(process_->jobs->Recover().ok());
    process_->loop.Run();
  }
  void StartJob(const std::function<void(v1::PpoSpec*)>& change = [](v1::PpoSpec*) {}) {
    Begin();
    std::string lines;
    for (int i = 0; i < kPrompts; ++i) absl::StrAppend(&lines, "{\"prompt\":\"prompt ", i, "\"}\n");
    v1::Job job;
    (*job.mutable_resolved())["prompts"] = process_->PublishPrompts(lines);
    job.set_id("job");
    job.set_state(v1::RUNNING);
    job.mutable_started_at()->set_seconds(1'700'000'000);
    job.mutable_spec()->set_name("job");
    v1::PpoSpec* ppo = job.mutable_spec()->mutable_ppo();
    ppo->set_policy("base");
    ppo->set_prompts("prompts");
    ppo->set_steps(6);
    ppo->set_max_policy_lag(0);
    ppo->set_prompts_per_step(kPrompts);
    v1::RewardComponent* component = ppo->mutable_scorer()->add_components();
    component->set_name("r");
    component->mutable_reward_model()->set_model("rm");
    change(ppo);
    ASSERT_EQ(JoinProblems(CompleteSpec(job.mutable_spec())), "");
    Store(std::move(job));
    ASSERT_TRUE(process_->jobs->Recover().ok());
    process_->loop.Run();
  }
  absl::StatusOr<v1::CommittedStep> StepRow(int64_t step) {
    RLHF_ASSIGN_OR_RETURN(const std::string row,
                          rows_.Get(Table::kMeta, KeyOf(CommittedStepPrefix("job"), {static_cast<uint64_t>(step)})));
    v1::CommittedStep committed;
    EXPECT_TRUE(committed.ParseFromString(row));
    return committed;
  }
  // The worker generates all it can lease, of so many tokens an answer, and it is scored. How many samples that were.
  int Work(const std::function<int(int64_t step)>& tokens = [](int64_t) { return 8; }) {
    v1::SubmitSamplesRequest results;
    results.set_session_id(worker_);
    for (const v1::PromptLease& lease : process_->Lease(worker_, 100)) {
      for (const v1::SampleLease& sample : lease.samples()) {
        v1::Sample* out = results.add_samples();
        *out = AnswerOf(lease, sample);
        for (int i = 0; i < tokens(lease.step()); ++i) {
          out->add_response_tokens(i);
          out->add_behaviour_log_probs(-1);
        }
      }
    }
    process_->sampling->SubmitSamples(results, [](absl::StatusOr<v1::SubmitSamplesResponse> response) {
      ASSERT_TRUE(response.ok()) << response.status();
      for (const v1::SampleVerdict& verdict : response->verdicts()) EXPECT_TRUE(verdict.accepted());
    });
    process_->loop.Run();
    process_->sampling->Tick();
    process_->loop.Run();
    return results.samples_size();
  }
  // Answers that come at once; DeadlineExceeded: none has come.
  absl::StatusOr<Batch> AskForBatch(int64_t step) {
    v1::NextBatchRequest request;
    request.set_job_id("job");
    request.set_step(step);
    auto answer = std::make_shared<absl::StatusOr<Batch>>(absl::DeadlineExceededError("it waits"));
    process_->jobs->NextBatch(request, [answer](absl::StatusOr<Batch> batch) { *answer = std::move(batch); });
    process_->loop.Run();
    return *answer;
  }
  absl::StatusOr<v1::CommitStepResponse> CommitStep(int64_t step, const std::string& weights) {
    v1::CommitStepRequest request;
    request.set_job_id("job");
    request.set_step(step);
    request.set_weights_digest(weights);
    request.set_weights_address("nowhere:2");
    auto answer = std::make_shared<absl::StatusOr<v1::CommitStepResponse>>(absl::DeadlineExceededError("it waits"));
    process_->jobs->CommitStep(
        request, [answer](absl::StatusOr<v1::CommitStepResponse> response) { *answer = std::move(response); });
    process_->loop.Run();
    return *answer;
  }
  absl::Status RefuseStep(int64_t step) {
    v1::RefuseStepRequest request;
    request.set_job_id("job");
    request.set_step(step);
    request.set_reason("a loss of NaN");
    auto answer = std::make_shared<absl::Status>(absl::DeadlineExceededError("it waits"));
    process_->jobs->RefuseStep(
        request, [answer](const absl::StatusOr<v1::RefuseStepResponse>& response) { *answer = response.status(); });
    process_->loop.Run();
    return *answer;
  }
  void TrainStep(int64_t step, const std::string& weights) {
    Work();
    const auto batch = AskForBatch(step);
    ASSERT_TRUE(batch.ok()) << batch.status();
    const auto committed = CommitStep(step, weights);
    ASSERT_TRUE(committed.ok()) << committed.status();
  }

  EqualRewards rewards_;
  std::unique_ptr<JobsProcess> process_;
  std::string worker_;
};

TEST_F(StepFencesTest, OnlyTheStepAfterTheCommittedOneIsServedCommittedOrRefused) {
  StartJob();
  TrainStep(1, "weights 1");
  Work();
  const std::string counts = process_->sampling->Counts("job").SerializeAsString();
  const auto fenced = [](const absl::Status& status) {
    return absl::IsAborted(status) && ReasonOf(status) == v1::STEP_OUT_OF_ORDER;
  };
  for (const int64_t step : {0, 1, 3}) {
    const absl::Status batch = AskForBatch(step).status();
    EXPECT_TRUE(fenced(batch)) << step << ": " << batch;
  }
  for (const int64_t step : {0, 1, 3, 5}) {
    const absl::Status refused = RefuseStep(step);
    EXPECT_TRUE(fenced(refused)) << step << ": " << refused;
  }
  for (const auto& [step, weights] : std::map<int64_t, std::string>{{0, ""}, {1, "other weights"}, {3, "weights 3"}}) {
    const absl::Status committed = CommitStep(step, weights).status();
    EXPECT_TRUE(fenced(committed)) << step << ": " << committed;
  }
  const auto repeated = CommitStep(1, "weights 1");
  ASSERT_TRUE(repeated.ok()) << repeated.status();
  EXPECT_EQ(repeated->version().step(), 1);
  EXPECT_EQ(JobRow().version().step(), 1);
  EXPECT_EQ(JobRow().version().digest(), "weights 1");
  EXPECT_EQ(StepRow(1)->commits(), 1);
  EXPECT_TRUE(absl::IsNotFound(StepRow(3).status()));
  EXPECT_EQ(process_->sampling->Counts("job").SerializeAsString(), counts);
  EXPECT_TRUE(AskForBatch(2).ok());
}

TEST_F(StepFencesTest, RefusalsEndAJobOnlyWhenTheyAreInARow) {
  StartJob();
  for (int64_t step = 1; step <= 3; ++step) {
    Work();
    ASSERT_TRUE(AskForBatch(step).ok());
    ASSERT_TRUE(RefuseStep(step).ok());
    EXPECT_EQ(Work(), kPrompts) << "a new batch";
    ASSERT_TRUE(AskForBatch(step).ok());
    ASSERT_TRUE(CommitStep(step, absl::StrCat("weights ", step)).ok());
  }
  EXPECT_EQ(JobRow().state(), v1::RUNNING) << JobRow().reason();
  EXPECT_EQ(JobRow().version().step(), 3);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(JobRow().state(), v1::RUNNING) << JobRow().reason();
    Work();
    ASSERT_TRUE(AskForBatch(4).ok());
    ASSERT_TRUE(RefuseStep(4).ok());
  }
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "NONFINITE");
  EXPECT_THAT(JobRow().reason(), HasSubstr("step 4 was refused 3 times in a row, at last: a loss of NaN"));
}

TEST_F(StepFencesTest, AReplayThatEndsOtherwiseBeginsALineage) {
  StartJob();
  TrainStep(1, "weights 1");
  TrainStep(2, "weights 2");
  // A learner that holds nothing: back to the beginning.
  const std::string learner = process_->Register(v1::ROLE_LEARNER, "learner-0");
  v1::JoinGroupRequest join;
  join.set_session_id(learner);
  join.set_wait_ms(10'000);
  std::optional<v1::GroupAssignment> assignment;
  process_->groups->JoinGroup(join, [&](absl::StatusOr<v1::JoinGroupResponse> response) {
    if (response.ok() && response->has_assignment()) assignment = response->assignment();
  });
  process_->loop.Run();
  ASSERT_TRUE(assignment.has_value());
  EXPECT_EQ(assignment->next_step(), 1);
  EXPECT_EQ(JobRow().version().step(), 0);
  EXPECT_THAT(Messages(), testing::Contains(HasSubstr("steps 1 to 2 are trained again")));

  ASSERT_TRUE(AskForBatch(1).ok());
  ASSERT_TRUE(CommitStep(1, "other weights").ok());
  EXPECT_EQ(JobRow().version().step(), 1);
  EXPECT_EQ(JobRow().version().lineage(), 1u);
  EXPECT_THAT(Messages(),
              testing::Contains(HasSubstr("the replay of step 1 ended with other weights than before: lineage 1")));
  EXPECT_EQ(StepRow(1)->lineage(), 1u);
  EXPECT_EQ(StepRow(1)->weights_digest(), "other weights");
  EXPECT_TRUE(absl::IsNotFound(StepRow(2).status())) << "what came after it is another history now";
  // Else alarms of the other history's steps would count as told after a restart.
  const auto seen = [this](uint64_t step) {
    return rows_.Get(Table::kMeta, KeyOf(MonitorStepPrefix("job"), {step})).status();
  };
  EXPECT_TRUE(seen(1).ok());
  EXPECT_TRUE(absl::IsNotFound(seen(2)));
}

// Its build or machine is at fault: the job waits for another.
TEST_F(StepFencesTest, ALearnerThatCannotTrainTheJobDoesNotFailIt) {
  StartJob();
  const auto join = [&](const std::string& learner) {
    v1::JoinGroupRequest request;
    request.set_session_id(learner);
    request.set_wait_ms(10'000);
    auto assigned = std::make_shared<bool>(false);
    process_->groups->JoinGroup(request, [assigned](absl::StatusOr<v1::JoinGroupResponse> response) {
      *assigned = response.ok() && response->has_assignment();
    });
    process_->loop.Run();
    return *assigned;
  };
  const std::string old = process_->Register(v1::ROLE_LEARNER, "learner-0");
  ASSERT_TRUE(join(old));
  v1::FailTrainingRequest request;
  request.set_job_id("job");
  request.set_session_id(old);
  request.set_reason_code("UNSUITED");
  request.set_reason("update this learner");
  std::optional<absl::Status> answered;
  process_->jobs->FailTraining(
      request, [&](absl::StatusOr<v1::FailTrainingResponse> response) { answered = response.status(); });
  process_->loop.Run();
  EXPECT_EQ(answered, absl::OkStatus());
  EXPECT_FALSE(IsTerminal(JobRow().state())) << JobRow().reason();
  EXPECT_FALSE(join(old));
  const absl::StatusOr<v1::ExplainJobResponse> why =
      process_->jobs->Explain("job", [](const std::string&) { return true; });
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_THAT(why->DebugString(), HasSubstr("1 are registered, of which 1 cannot (learner-0: update this learner)"));
  EXPECT_TRUE(join(process_->Register(v1::ROLE_LEARNER, "learner-1")));
}

TEST_F(StepFencesTest, AReplayThatEndsAlikeIsTheSameLineage) {
  StartJob();
  TrainStep(1, "weights 1");
  TrainStep(2, "weights 2");
  const std::string learner = process_->Register(v1::ROLE_LEARNER, "learner-0");
  v1::JoinGroupRequest join;
  join.set_session_id(learner);
  join.set_wait_ms(10'000);
  process_->groups->JoinGroup(join, [](absl::StatusOr<v1::JoinGroupResponse>) {});
  process_->loop.Run();
  for (const int64_t step : {1, 2}) {
    ASSERT_TRUE(AskForBatch(step).ok());
    ASSERT_TRUE(CommitStep(step, absl::StrCat("weights ", step)).ok());
  }
  EXPECT_EQ(JobRow().version().lineage(), 0u);
  EXPECT_EQ(StepRow(2)->commits(), 2);
}

TEST_F(StepFencesTest, AnAlarmOfAStepThatIsTrainedAgainIsToldOnce) {
  StartJob([](v1::PpoSpec* ppo) {
    ppo->set_max_policy_lag(1);
    ppo->mutable_monitor()->set_action(v1::MONITOR_ALERT);
    ppo->mutable_monitor()->set_window(1);
    ppo->mutable_monitor()->set_max_length_ratio(2);
  });
  const auto alerts = [this] {
    int count = 0;
    EXPECT_TRUE(rows_
                    .Scan(Table::kEvents, "",
                          [&](absl::string_view, absl::string_view value) {
                            v1::JobEvent event;
                            EXPECT_TRUE(event.ParseFromArray(value.data(), static_cast<int>(value.size())));
                            count += event.has_alert() ? 1 : 0;
                            return true;
                          })
                    .ok());
    return count;
  };
  ASSERT_EQ(Work([](int64_t step) { return step == 1 ? 8 : 20; }), 2 * kPrompts);
  const auto train = [this] {
    for (const int64_t step : {1, 2}) {
      ASSERT_TRUE(AskForBatch(step).ok());
      ASSERT_TRUE(CommitStep(step, absl::StrCat("weights ", step)).ok());
    }
  };
  train();
  ASSERT_EQ(alerts(), 1);
  for (const bool restarted : {false, true}) {
    if (restarted) Restart();
    // Nobody holds the weights: from the beginning.
    v1::JoinGroupRequest join;
    join.set_session_id(process_->Register(v1::ROLE_LEARNER, absl::StrCat("learner-", restarted)));
    join.set_wait_ms(600'000);
    process_->groups->JoinGroup(join, [](absl::StatusOr<v1::JoinGroupResponse>) {});
    process_->loop.Run();
    for (int second = 0; restarted && second < 60 && JobRow().version().step() > 0; ++second) {
      clock_.Advance(absl::Seconds(1));
      process_->groups->Tick();
      process_->loop.Run();
    }
    ASSERT_EQ(JobRow().version().step(), 0);
    train();
    EXPECT_EQ(alerts(), 1);
  }
}

TEST_F(StepFencesTest, AfterARestartTheMonitorKnowsTheStepsBefore) {
  StartJob([](v1::PpoSpec* ppo) {
    ppo->set_max_policy_lag(1);
    ppo->mutable_monitor()->set_window(1);
    ppo->mutable_monitor()->set_max_length_ratio(2);
  });
  // Both steps' answers are there before the restart: after it the version is nowhere to be had.
  ASSERT_EQ(Work([](int64_t step) { return step == 1 ? 8 : 20; }), 2 * kPrompts);
  ASSERT_TRUE(AskForBatch(1).ok());
  ASSERT_TRUE(CommitStep(1, "weights 1").ok());
  EXPECT_EQ(JobRow().state(), v1::RUNNING) << JobRow().reason();
  Restart();
  ASSERT_TRUE(AskForBatch(2).ok());
  ASSERT_TRUE(CommitStep(2, "weights 2").ok());
  EXPECT_EQ(JobRow().state(), v1::FAILED);
  EXPECT_EQ(JobRow().reason_code(), "REWARD_HACKING");
  EXPECT_THAT(JobRow().reason(), HasSubstr("answers went from 8 to 20 tokens"));
}

}  // namespace
}  // namespace rlhf::coordinator
