// Folders of learners, rollout workers and reward servers are on a volume that does not answer (hang.cc): each says
// what it waits for, can be stopped, and goes on once the volume answers; the coordinator says why a job does not move.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/hang_while.h"
#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class HangingRoles : public testing::Test {
 protected:
  // Every instance has a volume of its own at `folder` of the cluster's.
  void Start(const std::string& folder, const std::vector<std::string>& instances, std::vector<std::string> up) {
    instances_ = instances;
    LocalServiceOptions options;
    options.faults = true;
    options.up = std::move(up);
    service_ = std::make_unique<LocalService>(options, [&](const std::string& dir) {
      std::vector<std::string> words;
      for (const std::string& instance : instances) {
        const std::string script =
            HangsBelow(dir + "/" + folder, dir + "/hang-" + instance) + "exec \"$@\" --grace-seconds 3";
        for (std::string& word : WrapInScript(dir, instance, script)) words.push_back(std::move(word));
      }
      return words;
    });
    MakeSmallModel(service_->scratch().path());
  }
  ~HangingRoles() override {
    for (const std::string& instance : instances_) SetHangs(instance, false);  // the service is to end
  }
  void SetHangs(const std::string& instance, bool hangs) const {
    SetHangWhile(service_->Dir() + "/hang-" + instance, hangs);
  }
  void Submit(const SmallJob& job) const { SubmitSmallJob(*service_, job); }
  void AwaitStep(const SmallJob& job, int64_t step) const {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_->StepOf(job.name) >= step; }, absl::StrCat("step ", step));
  }
  void AwaitWhy(const SmallJob& job, const std::string& words) const {
    LocalService::Until(
        absl::Seconds(60), [&] { return absl::StrContains(service_->Ctl("why " + job.name).output, words); },
        "why says: " + words);
  }
  void AwaitLog(const std::string& instance, const std::string& words) const {
    LocalService::Until(
        absl::Seconds(60), [&] { return absl::StrContains(service_->Log(instance), words); },
        instance + " says: " + words);
  }
  // Ends with this code, in its grace, what may still be closed after that, and slack for a busy machine.
  void ExpectEnds(const std::string& instance, const std::string& how) const {
    const pid_t pid = service_->Pid(instance);
    ASSERT_GT(pid, 0) << instance;
    const std::string up = ReadFile(service_->scratch().File("up.log")).value_or("");
    kill(pid, SIGTERM);
    LocalService::Until(
        absl::Seconds(14), [&] { return kill(pid, 0) != 0; }, instance + " ends");
    const std::string ended = absl::StrCat(instance, " ended (", how, ")");
    LocalService::Until(
        absl::Seconds(10),
        [&] {
          return absl::StrContains(ReadFile(service_->scratch().File("up.log")).value_or("").substr(up.size()), ended);
        },
        ended);
  }
  void Finish(const SmallJob& job) const {
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job);
    ExpectExactReplay(*service_, job);
  }

  std::unique_ptr<LocalService> service_;
  std::vector<std::string> instances_;
};

TEST_F(HangingRoles, WhoStartsMeanwhileSaysWhatItWaitsForAndCanBeStopped) {
  Start("cache", {"learner-0", "rollout-0", "reward-0"}, {"--slots", "32"});
  for (const std::string& instance : instances_) {
    SetHangs(instance, true);
    const pid_t pid = service_->Pid(instance);
    ASSERT_GT(pid, 0) << instance;
    kill(pid, SIGKILL);
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Pid(instance) > 0 && service_->Pid(instance) != pid; },
        instance + " is started again");
  }
  for (const std::string& instance : instances_) {
    AwaitLog(instance, absl::StrCat("waiting for the cache folder (--cache-dir ", service_->Dir(), "/cache/", instance,
                                    "): it does not answer"));
    ExpectEnds(instance, "exit code 0");
    EXPECT_THAT(service_->Log(instance), HasSubstr("asked to stop while it started"));
    SetHangs(instance, false);
  }
  SmallJob job;
  Submit(job);
  Finish(job);
}

TEST_F(HangingRoles, ARolloutWorkerThatLoadsFromItIsNamedAndCanBeStopped) {
  Start("artifacts", {"rollout-0"}, {"--slots", "32", "--rollout-workers", "1"});
  SetHangs("rollout-0", true);
  SmallJob job;
  Submit(job);
  AwaitWhy(job, "wait for rollout-0, which has fetched or loaded its model or weights for");
  EXPECT_THAT(service_->Ctl("workers list").output, AllOf(HasSubstr("rollout-0"), HasSubstr("READY")));
  ExpectEnds("rollout-0", "exit code 0");
  SetHangs("rollout-0", false);
  Finish(job);
}

TEST_F(HangingRoles, ARewardServerThatLoadsFromItCanBeStopped) {
  Start("artifacts", {"reward-0"}, {"--slots", "32"});
  SetHangs("reward-0", true);
  SmallJob job;
  Submit(job);
  AwaitLog("reward-0", "scoring samples of job");
  AwaitWhy(job, "requests are at reward servers");
  ExpectEnds("reward-0", "exit code 0");
  SetHangs("reward-0", false);
  Finish(job);
}

TEST_F(HangingRoles, ALearnerThatWritesACheckpointToItIsNamedAndCanBeStopped) {
  Start("artifacts", {"learner-0"}, {"--slots", "32", "--learners", "1"});
  SmallJob job;
  job.ranks = 1;
  job.steps = kOutlastsAKill;
  Submit(job);
  AwaitStep(job, 6);
  SetHangs("learner-0", true);
  AwaitWhy(job, ", which learner-0 writes");
  ExpectEnds("learner-0", "exit code 75");
  SetHangs("learner-0", false);
  Finish(job);
}

// Nobody who only looks on holds up training.
TEST_F(HangingRoles, EventFilesOnItHoldUpNoTraining) {
  Start("tensorboard", {"learner-0"}, {"--slots", "32", "--learners", "1", "--tensorboard"});
  SmallJob job;
  job.ranks = 1;
  job.steps = kOutlastsAKill;
  Submit(job);
  AwaitStep(job, 2);
  SetHangs("learner-0", true);
  Finish(job);
  ExpectEnds("learner-0", "exit code 0");
  EXPECT_THAT(service_->Log("learner-0"), HasSubstr("after --grace-seconds a folder's volume does not answer"));
}

}  // namespace
}  // namespace rlhf
