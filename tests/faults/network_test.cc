// Cut, stalled, slow and reset networks between a role and the coordinator, a learner and those that take its weights,
// the coordinator and a reward server: leases expire, work goes on elsewhere, and nothing is committed twice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/proxy.h"
#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class Network : public testing::Test {
 protected:
  void Start(const std::string& instance, const SmallJob& job) {
    LocalServiceOptions options;
    options.faults = true;
    options.up = {"--slots", "32", "--via", absl::StrCat(instance, "=127.0.0.1:", proxy_.port())};
    options.prepare = [this](const std::string& dir) { proxy_.SetPortsFile(dir + "/ports/coordinator.json"); };
    service_ = std::make_unique<LocalService>(options);
    Submit(job);
  }
  // What others ask of an instance, a learner's weights or a reward server's scores, goes through a proxy.
  void StartBehind(const std::string& instance, const SmallJob& job) {
    server_proxy_ = Proxy::Aside();
    LocalServiceOptions options;
    options.faults = true;
    options.up = {"--slots", "32", "--learners", absl::StrCat(job.ranks)};
    service_ = std::make_unique<LocalService>(options, [&](const std::string& dir) {
      return WrapInScript(dir, instance,
                          absl::StrCat("exec \"$@\" --address 127.0.0.1:", server_proxy_->port(),
                                       " --advertise-address ", Proxy::kAside));
    });
    Submit(job);
  }
  void Submit(const SmallJob& job) {
    job_ = job;
    MakeSmallModel(service_->scratch().path());
    ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(*service_, job));
    WaitForStep(2);
  }
  void WaitForStep(int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_->StepOf(job_.name) >= step; }, absl::StrCat("step ", step));
  }
  void WaitForLog(const std::string& instance, const std::string& text) {
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Log(instance).find(text) != std::string::npos; },
        instance + " says \"" + text + "\"");
  }
  // At lag 0 a step waits for what the last one was made of: behind a cut only what was under way gets through.
  void CutStopsTheJob() {
    server_proxy_->Cut(true, true);
    absl::SleepFor(absl::Seconds(1));
    const int64_t step = service_->StepOf(job_.name);
    absl::SleepFor(absl::Seconds(3));
    EXPECT_LE(service_->StepOf(job_.name), step + 1);
    EXPECT_EQ(service_->StateOf(job_.name), "RUNNING");
    server_proxy_->Heal();
    WaitForStep(step + 3);
  }
  // Every connection is reset while one of its calls is under way.
  void ResetAt(const std::string& instance, const std::string& failpoint) {
    service_->Arm(instance, failpoint, "sleep:500");
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Fired(instance, failpoint); }, failpoint + " is reached");
    server_proxy_->Reset();
    WaitForStep(service_->StepOf(job_.name) + 3);
  }
  void Finish() {
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job_);
    ExpectExactReplay(*service_, job_);
  }

  Proxy proxy_;
  std::unique_ptr<Proxy> server_proxy_;
  std::unique_ptr<LocalService> service_;
  SmallJob job_;
};

TEST_F(Network, AWorkerThatIsCutOffEitherWayLosesItsLeasesAndIsFenced) {
  SmallJob job;
  job.steps = kOutlastsAKill;  // the other worker goes on through all three cuts
  Start("rollout-0", job);
  for (const auto& [up, down] : {std::pair(true, true), std::pair(true, false), std::pair(false, true)}) {
    // It holds leases when the line goes.
    service_->Arm("rollout-0", "rollout/mid_generation", "sleep:500");
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Fired("rollout-0", "rollout/mid_generation"); }, "it generates");
    const std::string log = service_->Log("coordinator");
    proxy_.Cut(up, down);
    const absl::Time cut = absl::Now();
    // Answers that cannot get through keep the session alive as long as requests do: then a lease lives until its
    // worker's calls have ended.
    if (up) {
      LocalService::Until(
          absl::Seconds(20),
          [&] { return service_->Log("coordinator").find("rollout-0 is lost", log.size()) != std::string::npos; },
          "the worker is given up");
      EXPECT_LT(absl::Now() - cut, absl::Seconds(6));  // three heartbeats of a second, and slack for a busy machine
    }
    WaitForStep(service_->StepOf(job_.name) + 1);
    proxy_.Heal();
  }
  Finish();
}

TEST_F(Network, ALearnerThatIsCutOffCommitsNothing) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start("learner-0", job);
  proxy_.Cut(true, true);
  WaitForLog("coordinator", "learner-0 is lost");
  const int64_t step = service_->StepOf(job_.name);
  absl::SleepFor(absl::Seconds(2));  // it may try whatever it likes
  EXPECT_EQ(service_->StepOf(job_.name), step);
  proxy_.Heal();
  Finish();
}

TEST_F(Network, ASlowLineChangesNothingButTime) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start("rollout-0", job);
  proxy_.Delay(absl::Milliseconds(150));
  WaitForStep(service_->StepOf(job_.name) + 2);
  proxy_.Delay(absl::ZeroDuration());
  Finish();
}

TEST_F(Network, WeightsThatDoNotArriveStopTheJobWhichGoesOnWhenTheyDo) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.ranks = 1;
  StartBehind("learner-0", job);
  CutStopsTheJob();
  ASSERT_FALSE(HasFatalFailure());
  ResetAt("rollout-0", "rollout/receive_weights");
  Finish();
}

TEST_F(Network, ScoresThatDoNotArriveAreAskedForAgain) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  StartBehind("reward-0", job);
  CutStopsTheJob();
  ASSERT_FALSE(HasFatalFailure());
  ResetAt("reward-0", "reward/after_score");
  Finish();
  const CommandResult ledger = service_->Ctl("--output json ledger " + job_.name);
  EXPECT_EQ(nlohmann::json::parse(ledger.output, nullptr, false)["counts"].value("failed", "0"), "0");
}

}  // namespace
}  // namespace rlhf
