// Wall clocks an hour apart, and set by an hour while everything runs, have no effect: time is monotonic wherever it
// decides.
#include <fstream>

#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class ClockShift : public testing::Test {
 protected:
  static constexpr const char* kInstances[] = {"coordinator", "learner-0", "learner-1",
                                               "rollout-0",   "rollout-1", "reward-0"};

  void Start() {
    LocalServiceOptions options;
    options.faults = true;
    options.prepare = [this](const std::string& dir) {
      dir_ = dir;
      ASSERT_TRUE(MakeDirs(dir).ok());
      for (const char* instance : kInstances) Set(instance, 0);
    };
    service_ = std::make_unique<LocalService>(options, [](const std::string& dir) {
      std::vector<std::string> words;
      for (const char* instance : kInstances) {
        words.insert(words.end(),
                     {"--wrap", absl::StrCat(instance, "=LD_PRELOAD=", LocalService::FaultsBinDir(),
                                             "/librlhf_clock_shift.so CLOCK_SHIFT_FILE=", dir, "/shift-", instance)});
      }
      return words;
    });
  }
  // In place: the process has the file mapped.
  void Set(const std::string& instance, int64_t seconds) {
    std::fstream file(dir_ + "/shift-" + instance, std::ios::in | std::ios::out | std::ios::binary);
    if (!file) file.open(dir_ + "/shift-" + instance, std::ios::out | std::ios::binary);
    file.write(reinterpret_cast<const char*>(&seconds), sizeof(seconds));
    ASSERT_TRUE(file.good());
  }
  void WaitForStep(const std::string& job, int64_t step) {
    LocalService::Until(
        absl::Seconds(40), [&] { return service_->StepOf(job) >= step; }, absl::StrCat("step ", step));
  }

  std::unique_ptr<LocalService> service_;
  std::string dir_;
};

TEST_F(ClockShift, ClocksThatAreSetByAnHourHaveNoEffect) {
  Start();
  MakeSmallModel(service_->scratch().path());
  SmallJob job;
  job.steps = kOutlastsAKill;
  job.lag = 1;
  ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(*service_, job));
  WaitForStep(job.name, 2);
  int64_t step = 2;
  for (const int64_t hour : {3600, -3600, 0}) {
    for (const char* instance : {"coordinator", "learner-0", "learner-1", "rollout-0"}) {
      Set(instance, hour);
      WaitForStep(job.name, ++step);
    }
  }
  // All different.
  Set("coordinator", 3600);
  Set("learner-1", -3600);
  Set("rollout-1", -3600);
  Set("reward-0", -3600);
  LocalService::Until(
      absl::Seconds(180), [&] { return service_->StateOf(job.name) == "SUCCEEDED"; }, "the job succeeds");
  ExpectWhole(*service_, job);
  ExpectExactReplay(*service_, job);
  // A job without a ledger: it tells its progress every half second of whose clock?
  const std::string sft = service_->scratch().File("sft.yaml");
  ASSERT_TRUE(WriteFileDurably(sft,
                               "name: sft\nseed: 3\nlearners: {ranks: 2}\nsft: {model: \"file:model\", data: "
                               "\"file:sft.jsonl\", steps: 100000, batch_size: 8}\n")
                  .ok());
  const CommandResult trains = service_->Ctl("submit " + sft);
  ASSERT_EQ(trains.code, 0) << trains.output;
  WaitForStep("sft", 1);
  for (const int64_t hour : {3600, -3600, 0}) {
    for (const char* instance : {"coordinator", "learner-0", "learner-1"}) Set(instance, hour);
    const int64_t at = service_->StepOf("sft");
    WaitForStep("sft", at + 200);  // more than one report's
  }
  EXPECT_EQ(service_->Ctl("cancel sft").code, 0);
  // Nobody was given up.
  EXPECT_EQ(service_->Log("coordinator").find("is lost"), std::string::npos);
  EXPECT_EQ(service_->Log("coordinator").find("leases expired"), std::string::npos);
}

// What is remembered, or kept for somebody, for a time: a coordinator whose clock is days ahead must not forget it.
TEST_F(ClockShift, ACoordinatorDaysAheadRunsNothingTwiceAndTakesNothingFromWhoWrites) {
  Start();
  MakeSmallModel(service_->scratch().path());
  SmallJob job;
  const std::string submit = "--output json submit --request-id once " + WriteSmallJob(service_->scratch().path(), job);
  const auto submitted = [&] {
    const CommandResult result = service_->Ctl(submit);
    EXPECT_EQ(result.code, 0) << result.output;
    return nlohmann::json::parse(result.output, nullptr, false).value("id", "");
  };
  const std::string id = submitted();
  ASSERT_NE(id, "");
  const std::string staged = dir_ + "/artifacts/.staging/a-learner-writes/model.safetensors";
  ASSERT_TRUE(MakeDirs(std::filesystem::path(staged).parent_path().string()).ok());
  ASSERT_TRUE(WriteFileDurably(staged, "half").ok());
  Set("coordinator", 2 * 24 * 3600);
  EXPECT_EQ(submitted(), id);
  // Started again it looks for what was abandoned.
  const pid_t before = service_->Pid("coordinator");
  ASSERT_GT(before, 0);
  kill(before, SIGKILL);
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Ctl("models list").code == 0; }, "it serves again");
  EXPECT_EQ(submitted(), id);
  EXPECT_EQ(service_->Job(id).value("id", ""), id);
  LocalService::Until(
      absl::Seconds(120), [&] { return service_->StateOf(job.name) == "SUCCEEDED"; }, "the job succeeds");
  ExpectWhole(*service_, job);
  EXPECT_TRUE(std::filesystem::exists(staged));
}

}  // namespace
}  // namespace rlhf
