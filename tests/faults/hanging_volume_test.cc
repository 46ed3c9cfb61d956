// The artifacts' volume does not answer (hang.cc) in the coordinator: everything that people and roles ask of it is
// answered all the same, jobs pause and go on, and it can be stopped and started.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/faults/hang_while.h"
#include "tests/faults/wrap_script.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// Under what counts as a process that hangs: the loop answers at once or not at all.
constexpr absl::Duration kAnswersWithin = absl::Seconds(8);

class HangingVolume : public testing::Test {
 protected:
  explicit HangingVolume(const std::string& folder = "artifacts") {
    LocalServiceOptions options;
    options.faults = true;
    service_ = std::make_unique<LocalService>(options, [folder](const std::string& dir) {
      return WrapInScript(dir, "coordinator",
                          HangsBelow(dir + "/" + folder, dir + "/hang") + "exec \"$@\" --grace-ms 1000");
    });
    MakeSmallModel(service_->scratch().path());
  }
  ~HangingVolume() override { SetHangs(false); }  // the service is to end

  void SetHangs(bool hangs) const { SetHangWhile(service_->Dir() + "/hang", hangs); }
  void Submit(const SmallJob& job) const { SubmitSmallJob(*service_, job); }
  // Ends after 25 s; its output goes nowhere.
  void CtlBeside(const std::string& arguments) const {
    RunCommand(absl::StrCat("timeout -k 1 25 ", BinDir(), "/rlhfctl --context ", service_->Dir(), "/client.json ",
                            arguments, " >/dev/null 2>&1 </dev/null &"));
  }
  int Port(const std::string& name) const {
    const auto ports =
        nlohmann::json::parse(ReadFile(service_->Dir() + "/ports/coordinator.json").value_or(""), nullptr, false);
    return ports.is_object() ? ports.value(name, 0) : 0;
  }
  std::string Plain(const std::string& path) const {
    return RunCommand(absl::StrCat("curl -s -m 8 -w ' %{http_code}' http://127.0.0.1:", Port("http"), path)).output;
  }
  void EverybodyIsAnswered(const std::string& job) const {
    const absl::Time began = absl::Now();
    EXPECT_THAT(Plain("/healthz"), HasSubstr("200"));
    EXPECT_THAT(Plain("/readyz"), HasSubstr("200"));
    EXPECT_THAT(RunCommand(absl::StrCat("curl -sk -m 8 -o /dev/null -w '%{http_code}' https://127.0.0.1:", Port("web"),
                                        "/signin || true"))
                    .output,
                AllOf(HasSubstr("200"), Not(HasSubstr("000"))));
    EXPECT_EQ(service_->Ctl("get " + job).code, 0);
    EXPECT_EQ(service_->Ctl("models list").code, 0);
    EXPECT_EQ(service_->Ctl("workers list").code, 0);
    EXPECT_LT(absl::Now() - began, kAnswersWithin);
  }
  // How often the coordinator says it.
  int Says(const std::string& text) const {
    const std::string log = service_->Log("coordinator");
    int times = 0;
    for (size_t at = log.find(text); at != std::string::npos; at = log.find(text, at + 1)) ++times;
    return times;
  }
  void Until(const std::string& state, const std::string& job, absl::Duration patience = absl::Seconds(60)) const {
    LocalService::Until(
        patience, [&] { return service_->StateOf(job) == state; }, job + " is " + state);
  }

  std::unique_ptr<LocalService> service_;
};

TEST_F(HangingVolume, EverybodyIsAnsweredAndJobsPauseUntilItAnswers) {
  SmallJob endless;
  endless.name = "endless";
  endless.steps = 100'000;
  endless.checkpoint_every = 20;
  Submit(endless);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->StepOf(endless.name) >= 2; }, "it trains");
  const std::string file = service_->scratch().File("new.bin");
  ASSERT_TRUE(WriteFileDurably(file, std::string(8 << 20, 'n')).ok());

  SetHangs(true);
  // More of each kind of work than it has threads.
  for (int i = 0; i < 4; ++i) {
    const std::string other = absl::StrCat(service_->scratch().path(), "/new", i, ".bin");
    ASSERT_TRUE(WriteFileDurably(other, std::string(100'000, static_cast<char>('a' + i))).ok());
    CtlBeside("data push " + other);
  }
  const absl::Time began = absl::Now();
  do {
    EverybodyIsAnswered(endless.name);
  } while (service_->StateOf(endless.name) != "PAUSED" && absl::Now() - began < absl::Seconds(60) && !HasFailure());
  Until("PAUSED", endless.name);
  EXPECT_THAT(service_->Job(endless.name).dump(), HasSubstr("DISK_HANGS"));
  EXPECT_THAT(service_->Ctl("why " + endless.name).output, HasSubstr("does not answer"));
  EXPECT_GT(service_->Metric("coordinator", "rlhf_volume_unanswered_seconds{volume=\"artifacts\"}"), 9);
  EXPECT_EQ(service_->Metric("coordinator", "rlhf_volume_unanswered_seconds{volume=\"data\"}"), 0);
  // Who wants to use it is told at once.
  const CommandResult upload = RunCommand(absl::StrCat("timeout -k 1 60 ", BinDir(), "/rlhfctl --context ",
                                                       service_->Dir(), "/client.json data push ", file));
  EXPECT_NE(upload.code, 0);
  EXPECT_THAT(upload.output, HasSubstr("does not answer"));
  EverybodyIsAnswered(endless.name);
  EXPECT_EQ(service_->StateOf(endless.name), "PAUSED");
  EXPECT_EQ(Says("does not answer: jobs pause"), 1);
  EXPECT_EQ(Says("is lost: it"), 0) << "heartbeats were not answered";
  EXPECT_EQ(Says("is full"), 0);

  SetHangs(false);
  Until("RUNNING", endless.name);
  const int64_t step = service_->StepOf(endless.name);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->StepOf(endless.name) > step; }, "it trains on");
  EXPECT_EQ(service_->Ctl("cancel " + endless.name).code, 0);
  EXPECT_EQ(service_->Ctl("data push " + file).code, 0);
  SmallJob after;
  after.name = "after";
  Submit(after);
  Until("SUCCEEDED", after.name, absl::Seconds(90));
  ExpectWhole(*service_, after);
}

TEST_F(HangingVolume, ACoordinatorThatMeetsItCanBeStoppedAndSaysWhatItWaitsForAtTheStart) {
  SetHangs(true);
  // Its threads wait, and it is told to end.
  for (int i = 0; i < 4; ++i) CtlBeside("data push " + service_->scratch().File("prompts.jsonl"));
  LocalService::Until(
      absl::Seconds(30),
      [&] { return service_->Metric("coordinator", "rlhf_volume_unanswered_seconds{volume=\"artifacts\"}") > 1; },
      "the volume hangs");
  const auto ends = [&](absl::Duration within) {
    const pid_t pid = service_->Pid("coordinator");
    ASSERT_GT(pid, 0);
    kill(pid, SIGTERM);
    LocalService::Until(
        within, [&] { return kill(pid, 0) != 0; }, "it ends");
  };
  ends(absl::Seconds(20));  // 1 s of grace, 3 s more, 2 s for the volume to answer; and a machine that is busy
  EXPECT_GE(Says("does not answer; what was acknowledged is on the disk: ending at once"), 1);

  const auto says_so = [&](int times) {
    LocalService::Until(
        absl::Seconds(60), [&] { return Says("waiting for the artifacts' volume: it does not answer") == times; },
        "it says what it waits for");
  };
  says_so(1);
  ends(absl::Seconds(10));
  EXPECT_EQ(Says("asked to stop while the artifacts' volume did not answer"), 1);
  says_so(2);
  SetHangs(false);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Ctl("models list").code == 0; }, "it serves");
}

class HangingDataFolder : public HangingVolume {
 protected:
  HangingDataFolder() : HangingVolume("data") {}
};

TEST_F(HangingDataFolder, ACoordinatorThatMeetsItAtTheStartSaysSoAndCanBeStopped) {
  const auto ends = [this](int signal) {
    const pid_t pid = service_->Pid("coordinator");
    ASSERT_GT(pid, 0);
    kill(pid, signal);
    LocalService::Until(
        absl::Seconds(10), [&] { return kill(pid, 0) != 0; }, "it ends");
  };
  const auto says_so = [this](int times) {
    LocalService::Until(
        absl::Seconds(60), [&] { return Says("waiting for the data folder's volume: it does not answer") == times; },
        "it says what it waits for");
  };
  SetHangs(true);
  ends(SIGKILL);
  says_so(1);
  ends(SIGTERM);
  EXPECT_EQ(Says("asked to stop while the data folder's volume did not answer"), 1);
  says_so(2);
  SetHangs(false);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Ctl("models list").code == 0; }, "it serves");
}

}  // namespace
}  // namespace rlhf
