// Faults in which nobody dies: stopped and stuck processes, refusals, a scorer that errs, damaged checkpoints, drains.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;
using testing::Not;

class Behaviour : public testing::Test {
 protected:
  void Start(const SmallJob& job, std::vector<std::string> up = {"--slots", "32"}) {
    LocalServiceOptions options;
    options.faults = true;
    options.up = std::move(up);
    service_ = std::make_unique<LocalService>(options);
    job_ = job;
    MakeSmallModel(service_->scratch().path());
    SubmitSmallJob(*service_, job);
  }
  void WaitForStep(int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_->StepOf(job_.name) >= step; }, absl::StrCat("step ", step));
  }
  void WaitForState(const std::string& state) {
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == state; }, "the job is " + state);
  }
  void Finish() {
    WaitForState("SUCCEEDED");
    ExpectWhole(*service_, job_);
  }
  // The job fails, its reasons name all of these, and nothing it did is unaccounted for.
  void ExpectFails(const std::vector<std::string>& reasons) {
    WaitForState("FAILED");
    const std::string why = service_->Job(job_.name).dump();
    for (const std::string& reason : reasons) EXPECT_THAT(why, HasSubstr(reason));
    EXPECT_EQ(service_->Ctl("ledger " + job_.name + " --check --evidence " + service_->Dir() + "/evidence").code, 0);
  }
  nlohmann::json Counts() {
    return nlohmann::json::parse(service_->Ctl("--output json ledger " + job_.name).output, nullptr, false)["counts"];
  }
  static int Count(const std::string& text, const std::string& what) {
    int count = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
    return count;
  }
  void WaitForFire(const std::string& instance, const std::string& name) {
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Fired(instance, name); }, name + " is reached");
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
};

TEST_F(Behaviour, AStoppedWorkerIsFencedWhenItGoesOn) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  // There must be something left to do after nine seconds.
  service_->Arm("learner-0", "learner/before_step", "sleep:200*");
  WaitForStep(2);
  // Generated and not yet sent, then asleep for three leases.
  service_->Arm("rollout-0", "rollout/before_submit", "stop");
  WaitForFire("rollout-0", "rollout/before_submit");
  const int64_t step = service_->StepOf(job.name);
  absl::SleepFor(absl::Seconds(9));
  EXPECT_GT(service_->StepOf(job.name), step);
  const pid_t stopped = service_->Pid("rollout-0");
  ASSERT_GT(stopped, 0);
  service_->Arm("rollout-0", "rollout/after_submit", "sleep:1");
  ASSERT_EQ(kill(stopped, SIGCONT), 0);
  WaitForFire("rollout-0", "rollout/after_submit");
  EXPECT_GE(service_->Metric("coordinator", "rlhf_results_rejected_total{reason=\"STALE_ATTEMPT\"}"), 1);
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, AStoppedLearnerIsFencedWhenItGoesOn) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  WaitForStep(2);
  service_->Arm("any", "learner/before_commit", "stop");
  WaitForFire("any", "learner/before_commit");
  LocalService::Until(
      absl::Seconds(20),
      [&] { return service_->Log("coordinator").find("is lost: it sent no heartbeat") != std::string::npos; },
      "the coordinator gives it up");
  for (const pid_t learner : service_->Pids("rlhf-learner")) kill(learner, SIGCONT);
  Finish();
  ExpectExactReplay(*service_, job_);
}

// Every lease and every session would have run out by the time the coordinator goes on; it is not the others' fault.
TEST_F(Behaviour, AStoppedCoordinatorLosesNobodyAndLeasesNothingTwice) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.lag = 1;
  Start(job, {"--slots", "32", "--rollout-workers", "1"});  // nobody is there to hedge a lease
  WaitForStep(2);
  // Leases are held while it is stopped, also at the moment that it goes on.
  service_->Arm("rollout-0", "rollout/mid_generation", "sleep:200*");
  WaitForStep(service_->StepOf(job.name) + 1);
  const pid_t stopped = service_->Pid("coordinator");
  ASSERT_GT(stopped, 0);  // kill(-1) would end everything
  ASSERT_EQ(kill(stopped, SIGSTOP), 0);
  absl::SleepFor(absl::Seconds(9));  // three leases
  ASSERT_EQ(kill(stopped, SIGCONT), 0);
  service_->Disarm("rollout-0", "rollout/mid_generation");
  Finish();
  EXPECT_EQ(service_->Pid("coordinator"), stopped);
  const std::string log = service_->Log("coordinator");
  EXPECT_THAT(log, HasSubstr("this process stood still"));
  EXPECT_THAT(log, Not(HasSubstr("is lost")));
  EXPECT_THAT(log, Not(HasSubstr("leases expired")));
  EXPECT_EQ(Count(log, "ROLE_ROLLOUT_WORKER rollout-0 registered"), 1);
  EXPECT_GT(service_->Metric("coordinator", "rlhf_coordinator_standstill_seconds_total"), 7);
  EXPECT_EQ(service_->Metric("coordinator", "rlhf_leases_expired_total"), 0);
  EXPECT_EQ(std::max(0.0, service_->Metric("coordinator", "rlhf_results_rejected_total{reason=\"STALE_ATTEMPT\"}")), 0);
  EXPECT_EQ(Count(ReadFile(service_->Dir() + "/evidence/accepted-rollout-0.jsonl").value_or(""), "\n"),
            job.steps * job.samples());
  const std::string samples = service_->Ctl("--output json samples " + job.name + " --limit 5000").output;
  EXPECT_GE(Count(samples, "\"attempt\":1,"), job.steps * job.samples());
  EXPECT_EQ(Count(samples, "\"attempt\":2,"), 0);
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, AStoppedRewardServerLosesNothing) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.lag = 1;
  Start(job);
  WaitForStep(2);
  const int64_t step = service_->StepOf(job.name);
  const pid_t stopped = service_->Pid("reward-0");
  ASSERT_GT(stopped, 0);  // kill(-1) would end everything
  ASSERT_EQ(kill(stopped, SIGSTOP), 0);
  absl::SleepFor(absl::Seconds(9));  // three leases
  ASSERT_EQ(kill(stopped, SIGCONT), 0);
  WaitForStep(step + 3);
  EXPECT_EQ(service_->Pid("reward-0"), stopped);
  Finish();
  EXPECT_EQ(Counts().value("failed", "0"), "0");
  ExpectExactReplay(*service_, job_);
}

// Of the state's database, then of the samples' payloads.
TEST_F(Behaviour, AnErrorOfTheDiskEndsTheCoordinatorWhichGoesOnFromWhatIsThere) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  int errors = 0;
  for (const std::string failpoint : {"store/io_error", "payloads/io_error"}) {
    WaitForStep(service_->StepOf(job.name) + 2);
    service_->Arm("coordinator", failpoint, "error@3");
    WaitForFire("coordinator", failpoint);
    ++errors;
    LocalService::Until(
        absl::Seconds(30),
        [&] {
          return Count(ReadFile(service_->scratch().File("up.log")).value_or(""), "coordinator ended (exit code 75)") ==
                 errors;
        },
        "the coordinator ends, to be started again, after " + failpoint);
    EXPECT_EQ(Count(service_->Log("coordinator"), "the state store failed; ending"), errors) << failpoint;
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_THAT(service_->Log("coordinator"), HasSubstr("no write is acknowledged from now on"));
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, AnErrorOfTheDiskInACheckpointLeavesTheOneBeforeWhichIsUsed) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.checkpoint_every = 2;
  Start(job);
  WaitForStep(3);
  service_->Arm("any", "checkpoint/io_error", "error*");
  LocalService::Until(
      absl::Seconds(30),
      [&] { return Count(service_->Log("learner-0") + service_->Log("learner-1"), "no checkpoint of step") > 0; },
      "a checkpoint fails");
  const std::string before = service_->Job(job.name).value("checkpoint", "");
  EXPECT_THAT(before, HasSubstr("sha256:"));
  WaitForStep(service_->StepOf(job.name) + 4);  // without one it trains on
  EXPECT_EQ(service_->Job(job.name).value("checkpoint", ""), before);
  for (const pid_t learner : service_->Pids("rlhf-learner")) kill(learner, SIGKILL);
  service_->Disarm("any", "checkpoint/io_error");
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, AStepThatIsNotFiniteIsRefusedByAllAndGetsANewBatch) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  service_->Arm("learner-1", "learner/nonfinite", "error@3");
  Finish();
  EXPECT_TRUE(service_->Fired("learner-1", "learner/nonfinite"));
  EXPECT_EQ(Counts().value("failed", ""), absl::StrCat(job.samples()));
}

// A loss of one rank, then a gradient of the other that makes the sum of both infinite: in real processes, with real
// numbers.
TEST_F(Behaviour, ANanLossAndAnInfiniteGradientLeaveNoTraceInTheWeights) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  WaitForStep(2);
  service_->Arm("learner-1", "learner/nan_loss", "error");
  WaitForFire("learner-1", "learner/nan_loss");
  WaitForStep(service_->StepOf(job.name) + 2);
  service_->Arm("learner-0", "learner/inf_gradient", "error");
  WaitForFire("learner-0", "learner/inf_gradient");
  Finish();
  EXPECT_EQ(Counts().value("failed", ""), absl::StrCat(2 * job.samples()));
  // Both ranks refused both steps, and said what was not finite.
  for (const std::string learner : {"learner-0", "learner-1"}) {
    EXPECT_EQ(Count(service_->Log(learner), " was refused: "), 2) << learner;
  }
  EXPECT_THAT(service_->Log("learner-1"), HasSubstr("nan"));
  EXPECT_THAT(service_->Log("learner-0"), HasSubstr("inf"));
  // What an undisturbed learner makes of the batches that were trained: the snapshots brought everything back.
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, NanLossesInARowFailTheJobWithTheReason) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  service_->Arm("learner-0", "learner/nan_loss", "error*@5");
  ExpectFails({"NONFINITE", "3 times in a row"});
}

TEST_F(Behaviour, AScoreThatIsNotFiniteIsNeverTakenAndItsSampleIsScoredAgain) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  WaitForStep(1);
  service_->Arm("reward-0", "reward/nan_score", "error");
  WaitForFire("reward-0", "reward/nan_score");
  Finish();
  // Had it been taken, its step would have been refused and its samples would have failed.
  EXPECT_EQ(Counts().value("failed", "0"), "0");
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, ScoresThatAreNeverFiniteFailTheJobWithTheReason) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  service_->Arm("reward-0", "reward/nan_score", "error*");
  ExpectFails({"SAMPLE_FAILED", "the score is not finite"});
}

TEST_F(Behaviour, RefusalsInARowFailTheJobWithTheReason) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  service_->Arm("learner-1", "learner/nonfinite", "error*@2");
  ExpectFails({"NONFINITE"});
}

TEST_F(Behaviour, WhileTheScorerErrsSamplesWaitUnscored) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job);
  WaitForStep(1);
  service_->Arm("reward-0", "reward/before_score", "error*");
  LocalService::Until(
      absl::Seconds(30), [&] { return Counts().value("generated", "0") == absl::StrCat(job.samples()); },
      "a whole step waits for its scores");
  absl::SleepFor(absl::Seconds(2));
  const nlohmann::json counts = Counts();
  EXPECT_EQ(counts.value("generated", "0"), absl::StrCat(job.samples())) << counts.dump();
  EXPECT_EQ(counts.value("failed", "0"), "0");
  service_->Disarm("reward-0", "reward/before_score");
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, ADamagedCheckpointIsFoundByItsDigestAndTheOneBeforeIsUsed) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.checkpoint_every = 2;
  Start(job);
  // Bit flipped, truncated, manifest gone: each before the ranks that hold the weights die.
  for (int damage = 0; damage < 3; ++damage) {
    WaitForStep(3 + 3 * damage);
    service_->Arm("learner-0", "learner/before_step", "sleep:3000");
    WaitForFire("learner-0", "learner/before_step");
    const std::string digest = service_->Job(job.name).value("checkpoint", "");
    ASSERT_THAT(digest, HasSubstr("sha256:"));
    const std::string dir = service_->Dir() + "/artifacts/sha256/" + digest.substr(7);
    std::filesystem::permissions(dir, std::filesystem::perms::owner_all);
    const std::string file = dir + "/state.safetensors";
    if (damage == 0) {
      std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(std::filesystem::file_size(file)) - 9;
      bytes.seekg(at);
      const int was = bytes.get();
      bytes.seekp(at);
      bytes.put(static_cast<char>(was ^ 0x10));
    } else if (damage == 1) {
      std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
    } else {
      for (const auto& entry : std::filesystem::directory_iterator(dir)) {
        if (entry.path().filename().string().find("state") == std::string::npos) std::filesystem::remove(entry);
      }
    }
    for (const pid_t learner : service_->Pids("rlhf-learner")) kill(learner, SIGKILL);
    const int found = damage + 1;
    LocalService::Until(
        absl::Seconds(40), [&] { return Count(service_->Log("coordinator"), "is damaged (") >= found; },
        absl::StrCat("damage ", damage, " is found"));
  }
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(Behaviour, DrainedAndTerminatedProcessesFinishAndExitWithZero) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job, {"--slots", "32", "--restart-seconds", "3", "--restart-seconds-most", "3"});
  WaitForStep(2);
  const auto ended = [&](const std::string& instance, size_t from) {
    const std::string log = ReadFile(service_->scratch().File("up.log")).value_or("");
    const size_t at = log.find(instance + " ended (", from);
    return at == std::string::npos ? "" : log.substr(at, log.find('\n', at) - at);
  };
  const CommandResult drained = service_->Ctl("workers drain rollout-0", "admin.json");
  ASSERT_EQ(drained.code, 0) << drained.output;
  LocalService::Until(
      absl::Seconds(30), [&] { return !ended("rollout-0", 0).empty(); }, "the drained worker ends");
  EXPECT_THAT(ended("rollout-0", 0), HasSubstr("exit code 0"));
  for (const char* instance : {"rollout-1", "reward-0", "learner-0", "learner-1", "coordinator"}) {
    const pid_t pid = service_->Pid(instance);
    ASSERT_GT(pid, 0) << instance;  // kill(-1) would end everything
    ASSERT_EQ(kill(pid, SIGTERM), 0) << instance;
    // Within its grace of 25 seconds.
    LocalService::Until(
        absl::Seconds(25), [&] { return !ended(instance, 0).empty(); }, std::string(instance) + " ends");
    EXPECT_THAT(ended(instance, 0), HasSubstr("exit code 0"));
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Pid(instance) > 0; }, std::string(instance) + " is back");
  }
  Finish();
  // What was drained and terminated was handed back, not lost: nothing was tried in vain.
  EXPECT_EQ(Counts().value("failed", "0"), "0");
}

}  // namespace
}  // namespace rlhf
