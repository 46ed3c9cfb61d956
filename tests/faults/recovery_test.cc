// How soon work goes on after a death, and who survives it. Production's heartbeats and leases.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class Recovery : public testing::Test {
 protected:
  // What dies stays away long enough that only the others can go on.
  static LocalServiceOptions Options(const std::string& restart_seconds, const std::string& heartbeat_ms = "3000") {
    LocalServiceOptions options;
    options.faults = true;
    options.up = {"--slots",
                  "32",
                  "--heartbeat-ms",
                  heartbeat_ms,
                  "--restart-seconds",
                  restart_seconds,
                  "--restart-seconds-most",
                  restart_seconds};
    return options;
  }
  void Start(const SmallJob& job, const std::string& restart_seconds) {
    service_ = std::make_unique<LocalService>(Options(restart_seconds));
    Submit(job);
  }
  void Submit(const SmallJob& job) {
    MakeSmallModel(service_->scratch().path());
    job_ = job;
    SubmitSmallJob(*service_, job);
  }
  void WaitForStep(int64_t step, absl::Duration patience) {
    LocalService::Until(
        patience, [&] { return service_->StepOf(job_.name) >= step; }, absl::StrCat("step ", step));
  }
  void Finish(absl::Duration patience) {
    LocalService::Until(
        patience, [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job_);
  }
  // A job whose first step is too small for hedges, which need eight results: only an expired lease is given again.
  static SmallJob FourSamplesAStep() {
    SmallJob job;
    job.steps = 6;
    job.prompts_per_step = 4;
    job.samples_per_prompt = 1;
    return job;
  }
  // When the first step's samples that had to be leased twice were leased the second time, by the coordinator's clock.
  std::vector<absl::Time> LeasedAgain() const {
    std::vector<absl::Time> times;
    const CommandResult samples = service_->Ctl("--output json samples " + job_.name + " --step 1");
    for (const absl::string_view line : absl::StrSplit(samples.output, '\n', absl::SkipEmpty())) {
      const nlohmann::json view = nlohmann::json::parse(line, nullptr, false);
      if (!view.is_object()) continue;
      const int attempt = view.value(nlohmann::json::json_pointer("/sample/attempt"), 0);
      const std::string leased = view.value(nlohmann::json::json_pointer("/row/times/leased"), std::string("0"));
      if (attempt >= 2) times.push_back(absl::FromUnixMicros(std::atoll(leased.c_str())));
    }
    return times;
  }
  bool Joined(const std::string& instance, int times) const {
    const std::string log = service_->Log("coordinator");
    int count = 0;
    for (size_t at = log.find(instance + " registered from"); at != std::string::npos;
         at = log.find(instance + " registered from", at + 1))
      ++count;
    return count >= times;
  }
  // With GoAway and ComeBack: words that start an instance by a script which waits while the instance is away.
  static std::vector<std::string> MayBeAway(const std::string& dir, const std::string& instance) {
    return WrapInScript(dir, instance,
                        absl::StrCat("while [ -e ", dir, "/away-", instance, " ]; do sleep 0.1; done\nexec \"$@\""));
  }
  void GoAway(const std::string& instance) {
    const pid_t pid = service_->Pid(instance);
    ASSERT_GT(pid, 0) << instance;  // kill(-1) would end everything
    ASSERT_TRUE(WriteFileDurably(service_->Dir() + "/away-" + instance, "").ok());
    ASSERT_EQ(kill(pid, SIGKILL), 0);
    const std::string lost = instance + " is lost";
    LocalService::Until(
        absl::Seconds(20), [&] { return service_->Log("coordinator").find(lost) != std::string::npos; }, lost);
  }
  void ComeBack(const std::string& instance) {
    std::filesystem::remove(service_->Dir() + "/away-" + instance);
    LocalService::Until(
        absl::Seconds(60), [&] { return Joined(instance, 2); }, instance + " joins");
  }
  // How many samples of the job the rollout worker knows to be accepted.
  size_t AcceptedFrom(const std::string& worker) const {
    const std::string text = ReadFile(service_->Dir() + "/evidence/accepted-" + worker + ".jsonl").value_or("");
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }
  bool ScoredBy(const std::string& server) const {
    return service_->Ctl("--output json samples " + job_.name + " --limit 5000")
               .output.find(absl::StrCat("\"reward_server\":\"", server, "\"")) != std::string::npos;
  }
  // The number of ranks of the newest step that a learner saw committed.
  int NewestWorld(const std::string& learner) const {
    const std::vector<nlohmann::json> commits = CommitsSeenBy(*service_, learner);
    return commits.empty() ? 0 : commits.back().value("world", 0);
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
};

// Production's lease of nine seconds from the last heartbeat.
TEST_F(Recovery, ADeadWorkersLeasesAreGivenToAnotherWithinTenSeconds) {
  service_ = std::make_unique<LocalService>(Options("60"));
  service_->Arm("rollout-0", "rollout/mid_generation", "kill");
  Submit(FourSamplesAStep());
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Fired("rollout-0", "rollout/mid_generation"); }, "it dies");
  const absl::Time died = absl::Now();
  EXPECT_EQ(service_->StepOf(job_.name), 0);
  WaitForStep(1, absl::Seconds(30));
  const std::vector<absl::Time> again = LeasedAgain();
  EXPECT_FALSE(again.empty()) << "it held no lease when it died";
  for (const absl::Time time : again) EXPECT_LT(time - died, absl::Seconds(10));
  Finish(absl::Seconds(60));
}

// A generation of over six seconds, and two to end in: what is not finished then is handed back, long before its worker
// would count as lost, and costs no attempt.
TEST_F(Recovery, ATerminatedWorkerHandsBackWhatDoesNotFitIntoItsGrace) {
  service_ = std::make_unique<LocalService>(Options("60"), [](const std::string& dir) {
    return WrapInScript(dir, "rollout-0", "exec \"$@\" --grace-seconds 2");
  });
  service_->Arm("rollout-0", "rollout/mid_generation", "sleep:200*");
  SmallJob job = FourSamplesAStep();
  job.max_new_tokens = 32;
  Submit(job);
  LocalService::Until(
      absl::Seconds(60),
      [&] { return service_->Log("rollout-0").find("failpoint rollout/mid_generation fires") != std::string::npos; },
      "it generates");
  const pid_t pid = service_->Pid("rollout-0");
  ASSERT_GT(pid, 0);  // kill(-1) would end everything
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  const absl::Time terminated = absl::Now();
  const auto up_log = [&] { return ReadFile(service_->scratch().File("up.log")).value_or(""); };
  LocalService::Until(
      absl::Seconds(30), [&] { return up_log().find("rollout-0 ended (") != std::string::npos; }, "it ends");
  const absl::Time ended = absl::Now();
  EXPECT_THAT(up_log(), testing::HasSubstr("rollout-0 ended (exit code 0)"));
  EXPECT_LT(ended - terminated, absl::Seconds(4));  // its grace, and slack for a busy machine
  WaitForStep(1, absl::Seconds(30));
  const std::vector<absl::Time> again = LeasedAgain();
  EXPECT_FALSE(again.empty()) << "it had finished everything";
  for (const absl::Time time : again) EXPECT_LT(time - ended, absl::Seconds(1));
  Finish(absl::Seconds(60));
  const std::string log = service_->Log("coordinator");
  EXPECT_THAT(log, testing::Not(testing::HasSubstr("leases expired")));
  EXPECT_THAT(log, testing::Not(testing::HasSubstr("generating failed")));
}

// A rollout worker and a reward server join while a job runs, then the ones that were there before them die: the job
// goes on with the new ones alone.
TEST_F(Recovery, RolloutWorkersAndRewardServersComeAndGoWhileAJobRuns) {
  LocalServiceOptions options = Options("0.2", "1000");
  options.up.insert(options.up.end(), {"--reward-servers", "2"});
  service_ = std::make_unique<LocalService>(options, [](const std::string& dir) {
    std::vector<std::string> words;
    for (const char* instance : {"rollout-0", "rollout-1", "reward-0", "reward-1"}) {
      for (const std::string& word : MayBeAway(dir, instance)) words.push_back(word);
    }
    return words;
  });
  for (const char* instance : {"rollout-1", "reward-1"}) GoAway(instance);
  ASSERT_FALSE(HasFatalFailure());
  SmallJob job;
  job.steps = 100;
  // There must be something left to do when the others have joined.
  service_->Arm("any", "learner/before_step", "sleep:200*");
  Submit(job);
  WaitForStep(2, absl::Seconds(60));
  EXPECT_GT(AcceptedFrom("rollout-0"), 0u);
  EXPECT_EQ(AcceptedFrom("rollout-1"), 0u);
  for (const char* instance : {"rollout-1", "reward-1"}) ComeBack(instance);
  LocalService::Until(
      absl::Seconds(30), [&] { return AcceptedFrom("rollout-1") > 0; }, "the new worker takes its share");
  for (const char* instance : {"rollout-0", "reward-0"}) GoAway(instance);
  ASSERT_FALSE(HasFatalFailure());
  WaitForStep(service_->StepOf(job.name) + 3, absl::Seconds(60));
  EXPECT_TRUE(ScoredBy("reward-1"));
  service_->Disarm("any", "learner/before_step");
  Finish(absl::Seconds(90));
  const CommandResult ledger = service_->Ctl("--output json ledger " + job.name);
  EXPECT_EQ(nlohmann::json::parse(ledger.output, nullptr, false)["counts"].value("failed", "0"), "0");
  ExpectExactReplay(*service_, job);
}

TEST_F(Recovery, SurvivorsKeepTheirProcessAndTheGroupFormsAgainWithinFifteenSeconds) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job, "1");
  WaitForStep(2, absl::Seconds(60));
  const pid_t survivor = service_->Pid("learner-0");
  service_->Arm("learner-1", "learner/inside_allreduce", "kill");
  LocalService::Until(
      absl::Seconds(30), [&] { return service_->Fired("learner-1", "learner/inside_allreduce"); }, "it dies");
  const absl::Time died = absl::Now();
  const int64_t step = service_->StepOf(job.name);
  WaitForStep(step + 1, absl::Seconds(30));
  EXPECT_LT(absl::Now() - died, absl::Seconds(15));
  Finish(absl::Seconds(180));
  EXPECT_EQ(service_->Pid("learner-0"), survivor);
  ExpectExactReplay(*service_, job);
}

// A rank's share of the optimizer's state dies with it: the checkpoint has the whole of it.
TEST_F(Recovery, AGroupOfSharesGoesBackToItsCheckpointWhenARankDies) {
  SmallJob job;
  job.steps = 9;
  job.checkpoint_every = 3;
  job.shard_optimizer_state = true;
  service_ = std::make_unique<LocalService>(Options("1"));
  // Slow enough for the kill to come before the next checkpoint, that of step 6, also where a step takes 30 ms: from
  // the first step on.
  service_->Arm("learner-0", "learner/before_step", "sleep:500*");
  Submit(job);
  WaitForStep(4, absl::Seconds(60));
  const pid_t survivor = service_->Pid("learner-0");
  service_->Arm("learner-1", "learner/before_step", "kill");
  LocalService::Until(
      absl::Seconds(30), [&] { return service_->Fired("learner-1", "learner/before_step"); }, "it dies");
  service_->Disarm("learner-0", "learner/before_step");
  Finish(absl::Seconds(90));
  EXPECT_EQ(service_->Pid("learner-0"), survivor);
  EXPECT_THAT(service_->Ctl("watch " + job.name).output,
              testing::HasSubstr("are trained again, from the same batches"));
  ExpectExactReplay(*service_, job);
}

// With production's timeouts: the others' collective, the rank's time to leave, and its restart.
TEST_F(Recovery, ARankThatHangsIsReplacedWithinAMinute) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job, "1");
  WaitForStep(2, absl::Seconds(60));
  const pid_t survivor = service_->Pid("learner-0"), hanging = service_->Pid("learner-1");
  // It goes on sending heartbeats.
  service_->Arm("learner-1", "learner/inside_allreduce", "sleep:600000");
  LocalService::Until(
      absl::Seconds(30), [&] { return service_->Fired("learner-1", "learner/inside_allreduce"); }, "it hangs");
  const absl::Time hung = absl::Now();
  const int64_t step = service_->StepOf(job.name);
  WaitForStep(step + 1, absl::Seconds(120));
  EXPECT_LT(absl::Now() - hung, absl::Seconds(60));
  Finish(absl::Seconds(180));
  EXPECT_EQ(service_->Pid("learner-0"), survivor);
  EXPECT_NE(service_->Pid("learner-1"), hanging);
  EXPECT_THAT(ReadFile(service_->scratch().File("up.log")).value_or(""),
              testing::HasSubstr("learner-1 ended (exit code 75)"));
  ExpectExactReplay(*service_, job);
}

// It goes on sending heartbeats, and generates nothing any more: the other worker tries what takes too long.
TEST_F(Recovery, AWorkerThatHangsHoldsNothingUpForAMinute) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  Start(job, "1");
  WaitForStep(2, absl::Seconds(60));
  const pid_t hanging = service_->Pid("rollout-0");
  service_->Arm("rollout-0", "rollout/mid_generation", "sleep:600000");
  LocalService::Until(
      absl::Seconds(30), [&] { return service_->Fired("rollout-0", "rollout/mid_generation"); }, "it hangs");
  const absl::Time hung = absl::Now();
  const int64_t step = service_->StepOf(job.name);
  WaitForStep(step + 1, absl::Seconds(90));
  EXPECT_LT(absl::Now() - hung, absl::Seconds(60));
  Finish(absl::Seconds(180));
  EXPECT_EQ(service_->Pid("rollout-0"), hanging);  // nobody ended it, and nothing was trained twice or lost
  ASSERT_GT(hanging, 0);                           // kill(-1) would end everything
  kill(hanging, SIGKILL);                          // it would sleep through the end of the service, too
}

// And whoever looks at /healthz can tell: the process is to be started again. So with a learner.
TEST_F(Recovery, WhoseComputingThreadHangsIsNotHealthy) {
  service_ = std::make_unique<LocalService>(Options("60", "1000"), [&](const std::string& dir) {
    std::vector<std::string> words;
    for (const char* instance : {"rollout-0", "learner-0"}) {
      for (std::string& word : WrapInScript(dir, instance, "exec \"$@\" --stuck-after-seconds 5"))
        words.push_back(std::move(word));
    }
    return words;
  });
  SmallJob job;
  job.steps = kOutlastsAKill;
  Submit(job);
  WaitForStep(2, absl::Seconds(60));
  const auto health = [&](const std::string& instance) {
    const auto ports =
        nlohmann::json::parse(ReadFile(service_->Dir() + "/ports/" + instance + ".json").value_or(""), nullptr, false);
    return RunCommand(absl::StrCat("curl -s -w ' %{http_code}' http://127.0.0.1:", ports.value("http", 0), "/healthz"))
        .output;
  };
  const std::pair<const char*, const char*> places[] = {{"learner-0", "learner/before_step"},
                                                        {"rollout-0", "rollout/mid_generation"}};
  for (const auto& [instance, failpoint] : places) {
    EXPECT_THAT(health(instance), testing::HasSubstr(" 200")) << instance;
    service_->Arm(instance, failpoint, "sleep:12000");
    LocalService::Until(
        absl::Seconds(30), [&] { return health(instance).find(" 503") != std::string::npos; },
        absl::StrCat(instance, " says that it hangs"));
    EXPECT_THAT(health(instance), testing::HasSubstr("has stood still for ")) << instance;
  }
  Finish(absl::Seconds(180));
  for (const auto& [instance, failpoint] : places) {
    LocalService::Until(
        absl::Seconds(30), [&] { return health(instance).find(" 200") != std::string::npos; },
        absl::StrCat(instance, " is healthy again"));
  }
}

// The same before there is anything to compare with: the lease itself ends. Ten seconds here instead of production's
// sixty; those are tested in virtual time (sampling_faults_test).
TEST_F(Recovery, ALeaseWithoutProgressIsGivenToAnotherThoughItsWorkerReports) {
  constexpr absl::Duration kNoProgress = absl::Seconds(10);
  service_ = std::make_unique<LocalService>(Options("60", "1000"), [&](const std::string& dir) {
    return WrapInScript(dir, "coordinator",
                        absl::StrCat("exec \"$@\" --no-progress-ms ", absl::ToInt64Milliseconds(kNoProgress)));
  });
  service_->Arm("rollout-0", "rollout/mid_generation", "sleep:600000");
  Submit(FourSamplesAStep());
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Fired("rollout-0", "rollout/mid_generation"); }, "it hangs");
  const absl::Time hung = absl::Now();
  const pid_t hanging = service_->Pid("rollout-0");
  ASSERT_GT(hanging, 0);  // kill(-1) would end everything
  EXPECT_EQ(service_->StepOf(job_.name), 0);
  WaitForStep(1, absl::Seconds(30));
  const std::vector<absl::Time> again = LeasedAgain();
  EXPECT_FALSE(again.empty()) << "it held no lease when it hung";
  for (const absl::Time time : again) EXPECT_LT(time - hung, kNoProgress + absl::Seconds(1));
  const std::string log = service_->Log("coordinator");
  EXPECT_THAT(log, testing::HasSubstr("its worker made no progress on it"));
  EXPECT_THAT(log, testing::Not(testing::HasSubstr("rollout-0 is lost")));
  Finish(absl::Seconds(60));
  EXPECT_EQ(service_->Pid("rollout-0"), hanging);
  kill(hanging, SIGKILL);
}

TEST_F(Recovery, AnElasticGroupGoesOnWithFewerRanksAndTakesTheNewOneInAtAStepsEnd) {
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.min_ranks = 1;
  Start(job, "12");
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->StepOf(job.name) >= 2 && NewestWorld("learner-0") == 2; },
      "two ranks train");
  const pid_t survivor = service_->Pid("learner-0");
  const pid_t victim = service_->Pid("learner-1");
  ASSERT_GT(victim, 0);  // kill(-1) would end everything
  ASSERT_EQ(kill(victim, SIGKILL), 0);
  const absl::Time died = absl::Now();
  LocalService::Until(
      absl::Seconds(30), [&] { return NewestWorld("learner-0") == 1; }, "one rank trains");
  EXPECT_LT(absl::Now() - died, absl::Seconds(15));
  // The dead one is started again after twelve seconds; slow the job down, so that it is there before the end.
  service_->Arm("learner-0", "learner/before_step", "sleep:400*");
  LocalService::Until(
      absl::Seconds(40), [&] { return NewestWorld("learner-0") == 2; }, "two ranks train again");
  service_->Disarm("learner-0", "learner/before_step");
  EXPECT_EQ(service_->Pid("learner-0"), survivor);
  Finish(absl::Seconds(180));
  // The run says that its sums are not those of an undisturbed one.
  EXPECT_THAT(service_->Ctl("watch " + job_.name).output,
              testing::AllOf(testing::HasSubstr("a group of 1 of 2 ranks forms"),
                             testing::HasSubstr("a group of 2 of 2 ranks forms")));
}

}  // namespace
}  // namespace rlhf
