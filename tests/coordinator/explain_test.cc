// `rlhfctl why`: for every reason there is, what it says, who holds what is waited for, and what to do.
#include "coordinator/jobs/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

JobFacts Active(v1::JobState state = v1::RUNNING) {
  JobFacts facts;
  facts.job.set_id("j");
  facts.job.set_state(state);
  facts.in_state = absl::Seconds(40);
  facts.no_progress = absl::Seconds(20);
  return facts;
}
JobFacts Training(int ranks) {
  JobFacts facts = Active(v1::PENDING);
  facts.learners.trains = true;
  facts.learners.ranks = ranks;
  facts.learners.since = absl::Seconds(30);
  return facts;
}
JobFacts SamplingFacts() {
  JobFacts facts = Active();
  facts.samples.generates = true;
  facts.samples.since = absl::Seconds(12);
  facts.samples.rollout_workers = 2;
  facts.samples.reward_servers = 1;
  return facts;
}

// The wait with the reason is there, and it is the first where nothing weighs more.
v1::Wait Expect(const JobFacts& facts, v1::WaitReason reason, bool first = true) {
  const v1::ExplainJobResponse response = ExplainFacts(facts);
  EXPECT_GT(response.waits_size(), 0);
  if (first) {
    EXPECT_EQ(response.waits(0).reason(), reason) << response.DebugString();
    EXPECT_EQ(response.waits_for(), response.waits(0).waits_for());
    EXPECT_EQ(response.what_to_do(), response.waits(0).what_to_do());
    EXPECT_EQ(response.since_seconds(), response.waits(0).since_seconds());
  }
  for (const v1::Wait& wait : response.waits()) {
    EXPECT_FALSE(wait.waits_for().empty());
    if (wait.reason() == reason) return wait;
  }
  ADD_FAILURE() << v1::WaitReason_Name(reason) << " is not among:\n" << response.DebugString();
  return {};
}

TEST(ExplainTest, StepsThatNobodyCountedYetAreNotNone) {
  JobFacts facts = Training(1);
  facts.job.set_state(v1::RUNNING);
  facts.learners.formed = true;
  EXPECT_THAT(Expect(facts, v1::TRAINING, false).waits_for(), HasSubstr("step 1 to be trained"));
  facts.job.set_total_steps(7);
  EXPECT_THAT(Expect(facts, v1::TRAINING, false).waits_for(), HasSubstr("step 1 of 7 to be trained"));
}

TEST(ExplainTest, Nothing) {
  JobFacts facts = Active(v1::FAILED);
  facts.job.set_reason("step 3 was refused 3 times");
  EXPECT_THAT(Expect(facts, v1::NOTHING).waits_for(), HasSubstr("FAILED: step 3 was refused"));
}

TEST(ExplainTest, Working) {
  EXPECT_EQ(Expect(Active(), v1::WORKING).since_seconds(), 20);
}

TEST(ExplainTest, Starting) {
  JobFacts facts = Training(1);
  facts.starting = true;
  EXPECT_EQ(Expect(facts, v1::STARTING).since_seconds(), 40);
}

TEST(ExplainTest, PausedByPerson) {
  JobFacts facts = Active(v1::PAUSED);
  facts.job.set_reason("paused by alice");
  const v1::Wait wait = Expect(facts, v1::PAUSED_BY_PERSON);
  EXPECT_THAT(wait.waits_for(), HasSubstr("paused by alice"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("rlhfctl resume j"));
}

TEST(ExplainTest, NoLearner) {
  JobFacts facts = Training(4);
  facts.learners.registered = 3;
  facts.learners.wait = GangWait::kTooFewLearners;
  const v1::Wait wait = Expect(facts, v1::NO_LEARNER);
  EXPECT_THAT(wait.waits_for(), HasSubstr("4 learners; 3 are registered"));
  EXPECT_EQ(wait.since_seconds(), 30);
}

TEST(ExplainTest, LearnersOfTwoVersions) {
  JobFacts facts = Training(2);
  facts.learners.registered = 2;
  facts.learners.free = 1;
  facts.learners.versions = {{"0.1.0", 1}, {"0.2.0", 1}};
  facts.learners.wait = GangWait::kTooFewLearners;
  const v1::Wait wait = Expect(facts, v1::NO_LEARNER);
  EXPECT_THAT(wait.waits_for(),
              HasSubstr("2 learners of one version; 1 of version 0.1.0 and 1 of version 0.2.0 are registered"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("finish the update"));

  // There are enough of one, at work elsewhere.
  facts.learners.registered = 3;
  facts.learners.versions["0.2.0"] = 2;
  facts.learners.wait = GangWait::kLearnersBusy;
  EXPECT_THAT(
      Expect(facts, v1::LEARNERS_BUSY).waits_for(),
      HasSubstr("1 of 3 are free; of one version, and registered are 1 of version 0.1.0 and 2 of version 0.2.0"));
}

TEST(ExplainTest, LearnersBusy) {
  JobFacts facts = Training(2);
  facts.learners.registered = 3;
  facts.learners.free = 1;
  facts.learners.wait = GangWait::kLearnersBusy;
  facts.learners.holders = {"other-1"};
  const v1::Wait wait = Expect(facts, v1::LEARNERS_BUSY);
  EXPECT_THAT(wait.waits_for(), HasSubstr("1 of 3 are free"));
  EXPECT_THAT(wait.held_by(), ElementsAre("other-1"));
}

TEST(ExplainTest, GroupForming) {
  JobFacts facts = Training(2);
  facts.learners.registered = 2;
  facts.learners.forming = true;
  facts.learners.not_joined = {"learner-1"};
  EXPECT_THAT(Expect(facts, v1::GROUP_FORMING).held_by(), ElementsAre("learner-1"));
}

TEST(ExplainTest, GroupThatBreaksAgainAndAgain) {
  JobFacts facts = Training(2);
  facts.learners.registered = 2;
  facts.learners.broke = "learner-1 left the group: UNAVAILABLE: cannot write";
  facts.learners.next_in = absl::Milliseconds(3200);
  const v1::Wait wait = Expect(facts, v1::GROUP_FORMING);
  EXPECT_THAT(wait.waits_for(), HasSubstr("learner-1 left the group: UNAVAILABLE: cannot write"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("formed in 4s"));
}

TEST(ExplainTest, GroupThatAwaitsWhoHoldsItsWeights) {
  JobFacts facts = Training(2);
  facts.learners.registered = facts.learners.free = 2;
  facts.learners.awaits_holders = true;
  EXPECT_THAT(Expect(facts, v1::GROUP_FORMING).waits_for(), HasSubstr("a learner that holds its newest weights"));
}

TEST(ExplainTest, PreemptedAndAboutToBe) {
  JobFacts facts = Training(2);
  facts.learners.registered = 2;
  facts.job.set_preempted_by("urgent-7");
  EXPECT_THAT(Expect(facts, v1::PREEMPTED).held_by(), ElementsAre("urgent-7"));
  JobFacts going = Training(2);
  going.learners.formed = going.learners.yielding = true;
  going.learners.yields_to = "urgent-7";
  Expect(going, v1::TRAINING);
  EXPECT_THAT(Expect(going, v1::PREEMPTED, /*first=*/false).waits_for(), HasSubstr("end of this step"));
}

TEST(ExplainTest, JobsOfOtherProjectsAreNotNamed) {
  const auto hidden = [](const std::string& id) { return id.rfind("red-", 0) == 0; };
  JobFacts busy = Training(2);
  busy.learners.registered = 3;
  busy.learners.wait = GangWait::kLearnersBusy;
  busy.learners.holders = {"red-1", "mine-2", "red-3"};
  HideJobs(hidden, &busy);
  EXPECT_THAT(Expect(busy, v1::LEARNERS_BUSY).held_by(), ElementsAre("mine-2", "a job of another project"));
  JobFacts preempted = Training(2);
  preempted.learners.registered = 2;
  preempted.job.set_preempted_by(kJobElsewhere);  // as the job table shows it
  const v1::Wait wait = Expect(preempted, v1::PREEMPTED);
  EXPECT_EQ(wait.waits_for(), "learners: a job of another project, of higher priority, took them");
  EXPECT_THAT(wait.held_by(), ElementsAre("a job of another project"));
  JobFacts going = Training(2);
  going.learners.formed = going.learners.yielding = true;
  going.learners.yields_to = "red-7";
  HideJobs(hidden, &going);
  EXPECT_THAT(Expect(going, v1::PREEMPTED, /*first=*/false).waits_for(),
              HasSubstr("then a job of another project, of"));
}

TEST(ExplainTest, QuotaOfJobsOfLearnersAndOfRolloutWorkers) {
  JobFacts jobs = Active(v1::PENDING);
  jobs.over_job_quota = true;
  jobs.quota_holders = {"a", "b"};
  EXPECT_THAT(Expect(jobs, v1::QUOTA).held_by(), ElementsAre("a", "b"));
  JobFacts learners = Training(2);
  learners.learners.registered = 4;
  learners.learners.wait = GangWait::kQuota;
  EXPECT_THAT(Expect(learners, v1::QUOTA).what_to_do(), HasSubstr("--max-learners"));
  JobFacts workers = SamplingFacts();
  workers.samples.counts.set_queued(5);
  workers.samples.over_quota = true;
  EXPECT_THAT(Expect(workers, v1::QUOTA).what_to_do(), HasSubstr("--max-rollout-workers"));
}

TEST(ExplainTest, ServiceIsHalted) {
  JobFacts facts = Training(1);
  facts.halted = true;
  facts.halted_by = "olga";
  facts.halt_reason = "an incident";
  const v1::Wait wait = Expect(facts, v1::SERVICE_IS_HALTED);
  EXPECT_THAT(wait.waits_for(), HasSubstr("an incident"));
  EXPECT_THAT(wait.held_by(), ElementsAre("olga"));
  // Halting stops training, not collecting.
  JobFacts collects = Active(v1::WAITING);
  collects.halted = collects.collects = true;
  Expect(collects, v1::RATERS);
}

TEST(ExplainTest, StoreFailing) {
  JobFacts facts = SamplingFacts();
  facts.store_failure = "database or disk is full";
  EXPECT_THAT(Expect(facts, v1::STORE_FAILING).waits_for(), HasSubstr("disk is full"));
}

TEST(ExplainTest, PausedForWantOfRoom) {
  JobFacts facts = Active(v1::PAUSED);
  facts.job.set_reason("the data volume has 3 MB left");
  facts.job.set_reason_code("DISK_FULL");
  EXPECT_THAT(Expect(facts, v1::STORE_FAILING).waits_for(), HasSubstr("3 MB left"));
}

TEST(ExplainTest, PausedForAVolumeToWriteTo) {
  JobFacts facts = Active(v1::PAUSED);
  facts.job.set_reason("the volume of /artifacts is read-only");
  facts.job.set_reason_code("DISK_READ_ONLY");
  const v1::Wait wait = Expect(facts, v1::STORE_FAILING);
  EXPECT_THAT(wait.waits_for(), HasSubstr("/artifacts is read-only"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("make the volume writable"));
}

TEST(ExplainTest, PausedForAVolumeThatAnswers) {
  JobFacts facts = Active(v1::PAUSED);
  facts.job.set_reason("the volume of /artifacts does not answer");
  facts.job.set_reason_code("DISK_HANGS");
  const v1::Wait wait = Expect(facts, v1::STORE_FAILING);
  EXPECT_THAT(wait.waits_for(), HasSubstr("a volume that answers"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("the volume's server"));
}

TEST(ExplainTest, WhatWasMadeWaitsForTheArtifactVolume) {
  JobFacts facts = SamplingFacts();
  facts.unpublished = "cannot write samples.jsonl: its volume is full";
  EXPECT_THAT(Expect(facts, v1::STORE_FAILING).waits_for(), HasSubstr("samples.jsonl: its volume is full"));
}

TEST(ExplainTest, NoRolloutWorker) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_queued(7);
  facts.samples.rollout_workers = 0;
  EXPECT_THAT(Expect(facts, v1::NO_ROLLOUT_WORKER).waits_for(), HasSubstr("7 samples"));
}

TEST(ExplainTest, NoRolloutWorkerThatCanServeIt) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_queued(7);
  facts.samples.unsuited_workers = 1;
  facts.samples.unsuited_why = "rollout-1: start this worker with --precision float32";
  Expect(facts, v1::ROLLOUT_WORKERS_BUSY);  // the other one can
  facts.samples.unsuited_workers = 2;
  const v1::Wait wait = Expect(facts, v1::NO_ROLLOUT_WORKER);
  EXPECT_THAT(wait.waits_for(), HasSubstr("2 registered, of which none can: rollout-1: start this worker with"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("--precision"));
}

TEST(ExplainTest, NoRolloutWorkerWithTheRoom) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_queued(7);
  facts.samples.too_large_samples = 2;
  facts.samples.too_large_why = "rollout-1: prompt 5 has 90 tokens: raise --max-tokens";
  EXPECT_THAT(Expect(facts, v1::NO_ROLLOUT_WORKER).waits_for(),
              HasSubstr("the room for 2 of the queued samples; none of 2 has it: rollout-1: prompt 5 has 90"));
}

TEST(ExplainTest, RolloutWorkersBusy) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_queued(7);
  facts.samples.rollout_holders = {"other-2"};
  EXPECT_THAT(Expect(facts, v1::ROLLOUT_WORKERS_BUSY).held_by(), ElementsAre("other-2"));
}

TEST(ExplainTest, Generating) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_queued(7);
  facts.samples.counts.set_leased(3);
  facts.samples.serving_this = 2;
  EXPECT_THAT(Expect(facts, v1::GENERATING).waits_for(), HasSubstr("3 samples are being generated, 7 are queued"));
  EXPECT_EQ(Expect(facts, v1::GENERATING).what_to_do(), "nothing");
  facts.samples.last_problem = "rollout-1: weights from 10.0.0.7:7010: Deadline Exceeded";
  EXPECT_THAT(Expect(facts, v1::GENERATING).what_to_do(), HasSubstr("mend what the newest problem names"));
  facts.samples.loading = 2;
  facts.samples.loading_by = "rollout-0";
  facts.samples.loading_for = absl::Seconds(90);
  const v1::Wait wait = Expect(facts, v1::GENERATING);
  EXPECT_THAT(wait.waits_for(),
              HasSubstr("2 of them wait for rollout-0, which has fetched or loaded its model or weights for 1m30s"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("the log of rollout-0 and the volumes"));
}

TEST(ExplainTest, NoRewardServer) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_generated(3);
  facts.samples.reward_servers = 0;
  EXPECT_THAT(Expect(facts, v1::NO_REWARD_SERVER).waits_for(), HasSubstr("3 generated"));
}

TEST(ExplainTest, NoRewardServerThatCanScoreIt) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_generated(3);
  facts.samples.reward_servers = 2;
  facts.samples.unsuited_reward_servers = 1;
  facts.samples.unsuited_reward_why = "reward-1: start this server with --precision float32";
  Expect(facts, v1::SCORING);  // the other one can
  facts.samples.unsuited_reward_servers = 2;
  const v1::Wait wait = Expect(facts, v1::NO_REWARD_SERVER);
  EXPECT_THAT(wait.waits_for(), HasSubstr("2 registered, of which none can: reward-1: start this server with"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("--precision"));
}

TEST(ExplainTest, Scoring) {
  JobFacts facts = SamplingFacts();
  facts.samples.counts.set_generated(3);
  facts.samples.score_requests = 1;
  facts.samples.last_problem = "scoring: no such model";
  EXPECT_THAT(Expect(facts, v1::SCORING).waits_for(), HasSubstr("3 samples"));
  EXPECT_THAT(Expect(facts, v1::SCORING).waits_for(), HasSubstr("newest problem: scoring: no such model"));
  EXPECT_THAT(Expect(facts, v1::SCORING).what_to_do(), HasSubstr("mend what the newest problem names"));
}

TEST(ExplainTest, WeightsUnavailable) {
  JobFacts facts = SamplingFacts();
  facts.learners.trains = true;
  facts.learners.ranks = facts.learners.registered = 1;
  facts.learners.forming = true;
  facts.samples.counts.set_queued(3);
  facts.samples.weights_away = true;
  Expect(facts, v1::GROUP_FORMING);
  Expect(facts, v1::WEIGHTS_UNAVAILABLE, /*first=*/false);
}

TEST(ExplainTest, Raters) {
  JobFacts facts = Active(v1::WAITING);
  facts.collects = true;
  facts.wanted = 100;
  facts.answered = 40;
  facts.handed_out = 2;
  facts.raters = {"rater-5"};
  const v1::Wait wait = Expect(facts, v1::RATERS);
  EXPECT_THAT(wait.waits_for(), HasSubstr("60 more comparisons"));
  EXPECT_THAT(wait.held_by(), ElementsAre("rater-5"));
}

TEST(ExplainTest, Gate) {
  JobFacts facts = Active(v1::WAITING);
  facts.pipeline = true;
  facts.gate_id = "p/ppo";
  facts.approvals = 1;
  facts.required_approvals = 3;
  facts.approved_by = {"olga"};
  const v1::Wait wait = Expect(facts, v1::GATE);
  EXPECT_THAT(wait.waits_for(), HasSubstr("2 more approvals"));
  EXPECT_THAT(wait.what_to_do(), HasSubstr("rlhfctl gate approve p/ppo"));
}

TEST(ExplainTest, Stage) {
  JobFacts facts = Active();
  facts.pipeline = true;
  facts.stage_id = "p-sft-1";
  facts.stage_waits_for = "1 learner; 0 are registered";
  const v1::Wait wait = Expect(facts, v1::STAGE);
  EXPECT_THAT(wait.waits_for(), HasSubstr("0 are registered"));
  EXPECT_THAT(wait.held_by(), ElementsAre("p-sft-1"));
}

TEST(ExplainTest, TrainingAndCheckpointing) {
  JobFacts facts = Training(1);
  facts.learners.formed = true;
  facts.job.set_step(4);
  facts.job.set_total_steps(10);
  EXPECT_THAT(Expect(facts, v1::TRAINING).waits_for(), HasSubstr("step 5 of 10"));
  facts.first_of_group = true;
  EXPECT_THAT(Expect(facts, v1::TRAINING).waits_for(), HasSubstr("load models, data and weights before it"));
  facts.first_of_group = false;
  facts.checkpointing = true;
  facts.saved_by = "learner-1";
  facts.no_progress = absl::Seconds(70);
  const v1::Wait wait = Expect(facts, v1::CHECKPOINTING);
  EXPECT_THAT(wait.waits_for(), HasSubstr("the checkpoint of step 4, which learner-1 writes"));
  EXPECT_EQ(wait.since_seconds(), 70);
}

TEST(ExplainTest, NoProgressIsSaidOfAllButThoseThatWaitForPeople) {
  JobFacts facts = SamplingFacts();
  facts.no_progress = absl::Minutes(11);
  EXPECT_TRUE(ExplainFacts(facts).no_progress());
  facts.job.set_state(v1::PAUSED);
  EXPECT_FALSE(ExplainFacts(facts).no_progress());
  facts.job.set_state(v1::SUCCEEDED);
  EXPECT_FALSE(ExplainFacts(facts).no_progress());
  JobFacts fresh = SamplingFacts();
  EXPECT_FALSE(ExplainFacts(fresh).no_progress());
}

}  // namespace
}  // namespace rlhf::coordinator
